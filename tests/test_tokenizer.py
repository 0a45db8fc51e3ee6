"""Byte pairs: exact on any text, those of well-kept libraries, learned on the training split, losses per character."""

import math
import random
import sys
import unicodedata

import pytest
import torch
from conftest import PROSE, build
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

import sample
from data import BPETokenizer, Dataset, UserError
from data import tokenizer as tokenizer_module
from data.corpus import tinyshakespeare
from data.tokenizer import LONGEST, words_of
from results import Sampling, sample_text


@pytest.fixture(scope="module")
def play():
    try:
        return tinyshakespeare()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def learned(play):
    return BPETokenizer.of(play[:200_000], 600)


def of_library(text, vocab_size):
    """The library `tokenizers` learns byte pairs from a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    how = dict(vocab_size=vocab_size, initial_alphabet=alphabet, min_frequency=2, show_progress=False)
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(**how))
    return tokenizer


@given(st.text())
def test_any_text_decodes_as_it_was(learned, text):
    assert learned.decode(learned.encode(text)) == text


@given(st.binary())
def test_any_bytes_decode_as_they_were(learned, content):
    text = content.decode(errors="surrogateescape")
    assert learned.decode(learned.encode(text)).encode(errors="surrogateescape") == content


def test_half_a_character_is_refused(learned):
    with pytest.raises(UserError, match="half a character"):
        learned.encode("a\ud800")


@pytest.mark.parametrize("vocab_size", [256, 257, 1024])
@pytest.mark.parametrize("text", ["play", "prose", "aaaa aaaaaaa aaa baaab abab ababab", ""])
def test_merges_and_ids_are_those_of_the_library(play, text, vocab_size):
    text = {"play": play if vocab_size == 1024 else play[:50_000], "prose": PROSE * 3}.get(text, text)
    ours, theirs = BPETokenizer.of(text, vocab_size), of_library(text, vocab_size)
    assert len(ours) == theirs.get_vocab_size()
    for string in (text, PROSE, play[-20_000:]):
        assert ours.encode(string).tolist() == theirs.encode(string).ids


def test_words_are_those_of_gpt2_at_every_character():
    known = [c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) not in ("Cn", "Cs", "Co", "Lo")]
    known += "אあ一三漢각ªǃ"  # of the 127,000 letters without case a few
    text = "".join(f"x{c}1{c} {c}.{c}{c} \n" for c in known)
    library = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert list(words_of(text)) == [text[start:end] for _, (start, end) in library]


def test_a_text_with_few_pairs_gives_few_tokens(text_file, capsys, train):
    state = train("bigram", vocab_size=4096)
    assert len(state["model"]["table.weight"]) == 256 + len(state["tokenizer"]["merges"]) < 4096
    assert "the text has pairs for" in capsys.readouterr().out


def test_nothing_is_learned_from_the_validation_split(tmp_path):
    def merges(validation):
        (tmp_path / "text").write_text("never seen again, never. " * 36 + validation)
        config = build("bigram").config
        config.data, config.vocab_size, config.device = str(tmp_path / "text"), 300, "cpu"
        data = Dataset(config)
        assert data.tokenizer.decode(data.splits["val"]) == validation
        return data.tokenizer.merges

    assert merges("abcdefghij" * 10) == merges("never seen" * 10)


def test_the_loss_is_per_character(tmp_path):
    """A table of zeros finds all V tokens equally likely, so a text of N tokens and M characters costs N ln V / M."""
    (tmp_path / "text").write_text("zwölf Boxkämpfer 🎭 jagen Viktor; " * 300, encoding="utf-8")
    model = build("bigram", vocab_size=300)
    config = model.config
    config.data, config.vocab_size, config.device = str(tmp_path / "text"), 300, "cpu"
    data = Dataset(config)
    val = data.splits["val"][1:]
    rest = data.tokenizer.decode(data.splits["val"]).removeprefix(data.tokenizer.decode(data.splits["val"][:1]))
    expected = len(val) * math.log(300) / len(rest)
    assert data.vocab_size < 300 and data.characters(val) == len(rest) > len(val)
    assert sys.modules["bigram"].evaluate(model, data) == pytest.approx(expected, rel=1e-6)
    assert sys.modules["bigram"].counted_loss(data) < expected


def test_training_losses_are_per_character_too(train):
    first = train("bigram", vocab_size=280, learning_rate=1e-9)
    row = first["metrics"].splitlines()[1].split(",")  # of the first step, when all tokens are equally likely
    assert float(row[3]) < math.log(280) / 2


def test_a_run_resumes_to_the_bit_and_is_sampled(train, tmp_path, capsys):
    whole = train("gpt", vocab_size=300, max_iters=8, out="whole")
    train("gpt", vocab_size=300, max_iters=4)
    resumed = train("gpt", "--resume", max_iters=8, vocab_size=300)
    again = train("gpt", vocab_size=300, max_iters=8, out="again")
    assert all(torch.equal(again["model"][name], weights) for name, weights in whole["model"].items())
    assert resumed["tokenizer"] == whole["tokenizer"] and torch.equal(
        resumed["generators"]["batches"], whole["generators"]["batches"]
    )
    capsys.readouterr()
    sample.main([str(tmp_path / "run"), "--prompt=Zoë 🎭?", "--device=cpu", "--max_new_tokens=9"])
    assert capsys.readouterr().out.startswith("Zoë 🎭?")


def test_tokens_have_a_length_that_they_may_have():
    doubled = [(0, 0)] + [(256 + i, 256 + i) for i in range(22)]
    assert max(map(len, BPETokenizer(doubled).tokens)) == LONGEST // 2
    with pytest.raises(ValueError, match="longer"):
        BPETokenizer([*doubled, (278, 278)])


def test_a_long_text_without_spaces_is_learned_as_the_library_does():
    """Each merge visits the places of its pair alone; going through all of the text each time took minutes."""
    text = "".join(random.Random(0).choices("ACGT", k=60_000))
    ours, theirs = BPETokenizer.of(text, 1024), of_library(text, 1024)
    assert ours.encode(text).tolist() == theirs.encode(text).ids


def test_a_text_of_one_letter_has_as_many_tokens_as_memory_allows(monkeypatch, capsys):
    monkeypatch.setattr(tokenizer_module, "LONGEST", 1000)
    tokenizer = BPETokenizer.of("a" * 100_000, 4096)
    assert sum(map(len, tokenizer.tokens[256:])) <= 1000 and len(tokenizer) > 260
    assert tokenizer.decode(tokenizer.encode("a" * 999)) == "a" * 999


def test_the_end_of_a_document_is_one_token_both_ways():
    tokenizer = BPETokenizer.of(PROSE, 300)
    ended = BPETokenizer(tokenizer.merges, end="<|endoftext|>")
    text = "One.<|endoftext|>Two. <|endoftext|><|endoftext|>"
    ids = ended.encode(text).tolist()
    assert ids.count(300) == 3 and len(ended) == 301 and ended.decode(ids) == text
    assert [i for i in ids if i != 300] == [*tokenizer.encode("One."), *tokenizer.encode("Two. ")]


def test_writing_stops_at_the_end_of_a_document():
    tokenizer = BPETokenizer([], end="<|endoftext|>")

    def generate(model, ids, max_new_tokens, **sampling):
        new = tokenizer.encode("to be<|endoftext|>or not").long()
        return torch.cat((ids, new.expand(len(ids), -1)), dim=1)

    model = torch.nn.Linear(1, 1)
    assert sample_text(model, generate, tokenizer, Sampling(num_samples=2)) == ["to be", "to be"]
    assert sample_text(model, generate, tokenizer, Sampling(prompt="a<|endoftext|>")) == ["a<|endoftext|>to be"]


@settings(max_examples=20, deadline=None)
@given(st.text(alphabet="ab c", max_size=60), st.integers(256, 280))
def test_learning_merges_the_most_frequent_pair(text, vocab_size):
    """A slow reading of the definition: count all pairs anew before each merge."""
    words = [list(word.translate({97: 64, 98: 65, 99: 66, 32: 220})) for word in words_of(text)]
    words = [[ord(c) if isinstance(c, str) else c for c in word] for word in words]
    merges = []
    while len(merges) + 256 < vocab_size:
        pairs = [pair for word in words for pair in zip(word, word[1:])]
        best = max(sorted(set(pairs)), key=pairs.count, default=None)
        if pairs.count(best) < 2:
            break
        for word in words:
            for i in range(len(word) - 1):
                if tuple(word[i : i + 2]) == best:
                    word[i : i + 2] = [256 + len(merges)]
        merges.append(best)
    assert BPETokenizer.of(text, vocab_size).merges == merges
