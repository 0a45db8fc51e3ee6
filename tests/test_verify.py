"""The published weights have the losses that are published, and publishing a run keeps what it wrote."""

import json
import math

import pytest
import torch
from conftest import argv_of, contents, far_from_start, tiny_flags, train_tiny, write_text

import gpt
import modern_gpt
import sample
from data import Dataset, UserError
from results import load_best, load_checkpoint
from results.metrics import read
from studies import ablation, ensemble, measuring, names, publish, student, verify
from studies.ablation import PUBLISHED


@pytest.mark.parametrize("run", ["bigram", "single_head", "multi_head", "block"])
def test_published_weights_have_the_loss_that_is_claimed(run):
    loss, in_the_page, _ = verify.measured(PUBLISHED / run)
    assert abs(loss - verify.claimed(PUBLISHED / run)) < 1e-3  # half precision
    assert in_the_page - loss < 0.01  # 8 bits a weight


def test_every_rung_has_published_weights_and_they_are_small():
    files = {file.parent.name: file.stat().st_size for file in PUBLISHED.glob("*/best.pt")}
    assert sum(files.values()) < 25e6
    rungs = {json.loads((PUBLISHED / run / "config.json").read_text(encoding="utf-8"))["rung"] for run in files}
    assert rungs == {name for name, where in sample.RUNGS.items() if where.startswith(f"{name}:")} - {"gpt2"}


def test_a_published_run_is_what_the_run_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path / "published")
    run = tmp_path / "reproduced" / "gpt"
    train_tiny("gpt", write_text(tmp_path / "corpus.txt"), run)
    train_tiny("gpt", tmp_path / "corpus.txt", tmp_path / "reproduced" / "gpt-2", seed=2)
    before = contents(run)
    publish.main([str(run), f"{run}-2"])
    assert contents(run) == before
    there = tmp_path / "published" / "gpt"
    assert (there / "metrics.csv").read_bytes() == (run / "metrics.csv").read_bytes()
    assert "reproduced" not in (there / "config.json").read_text(encoding="utf-8")
    kept, had = load_best(there)["model"], load_best(run)["model"]
    assert all(torch.equal(kept[name], had[name].half()) for name in had)
    _, model, _ = sample.load(there, "cpu")
    assert all(torch.equal(part, had[name].half().float()) for name, part in model.state_dict().items())
    assert not (tmp_path / "published" / "gpt-2" / "best.pt").exists()
    published = contents(there)
    (run / "sample.txt").write_text("another text")
    best, config = (run / "best.pt").read_bytes(), (run / "config.json").read_bytes()
    for name, damaged, line in (
        ("best.pt", best[:-100], "best.pt"),
        ("config.json", config.replace(b'"max_iters": ', b'"max_iters": 9'), "stopped before its last step"),
        ("config.json", b"[]", "damaged"),
    ):
        (run / "best.pt").write_bytes(best)
        (run / name).write_bytes(damaged)
        with pytest.raises(UserError, match=line):
            publish.main([str(run)])
        assert contents(there) == published


def test_what_is_not_there_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no weights of such a run"):
        verify.main(["nothing"])
    with pytest.raises(UserError, match="no config.json here"):
        publish.main([str(tmp_path)])


def test_a_run_that_was_stopped_is_in_no_table(tmp_path):
    for name, steps in (("gpt", 4), ("gpt-2", 3)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"config": {"max_iters": 4}}')
        rows = "".join(f"{step},16,1.0,2.5,2.5\n" for step in range(1, steps + 1))
        (tmp_path / name / "metrics.csv").write_text("step,tokens,seconds,train_loss,val_loss\n" + rows)
        (tmp_path / name / "sample.txt").write_text("text")
    assert ablation.finished("gpt", tmp_path) == [tmp_path / "gpt"]


def test_a_row_that_was_cut_off_is_not_read(tmp_path):
    (tmp_path / "losses.csv").write_text("row,seed,step,val_loss\ngpt.py,1,30,2.5\ngpt.py,1,60,2")
    assert ablation.read(tmp_path / "losses.csv", "row", "seed") == {("gpt.py", "1"): [[30, 2.5]]}
    ablation.append(tmp_path / "losses.csv", ("row", "seed", "step", "val_loss"), [("gpt.py", 2, 30, 2.4)])
    ablation.append(tmp_path / "losses.csv", (), [("row", "seed", "step", "val_loss")])  # two have begun it at once
    assert ablation.read(tmp_path / "losses.csv", "row", "seed") == {
        ("gpt.py", "1"): [[30, 2.5]],
        ("gpt.py", "2"): [[30, 2.4]],
    }


@pytest.mark.parametrize("text", ["row,seed,loss\na,1,nan\n", "row,loss\na,1\n", "row,seed,loss\na,1,2,3\n"])
def test_a_table_of_something_else_is_one_line(tmp_path, text):
    (tmp_path / "losses.csv").write_text(text)
    with pytest.raises(UserError, match="losses.csv: not a table of row, seed"):
        ablation.read(tmp_path / "losses.csv", "row", "seed")


def test_weights_are_measured_on_the_text_of_their_training_alone(tmp_path):
    text = write_text(tmp_path / "corpus.txt")
    train_tiny("gpt", text, tmp_path / "run")
    text.write_text(text.read_text()[::-1])
    with pytest.raises(UserError, match="another text"):
        measuring.main([str(tmp_path / "run")])


def test_an_ensemble_is_the_mean_of_probabilities(tmp_path, capsys):
    """Of three runs, whose windows have different lengths."""
    text, folders = write_text(tmp_path / "corpus.txt"), []
    for seed, block_size in ((1, 16), (2, 8), (3, 16)):
        folders.append(tmp_path / f"run-{seed}")
        train_tiny("gpt", text, folders[-1], seed=seed, block_size=block_size)
    capsys.readouterr()
    ensemble.main([str(folder) for folder in folders])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    parts = [ensemble.probabilities(folder)[0] for folder in folders]
    for row, folder, p in zip(rows, folders, parts):
        assert float(row[1]) == pytest.approx(-p.log().mean().item(), abs=1e-4)
        assert float(row[1]) == pytest.approx(min(filter(None, read(folder)["val_loss"])), abs=1e-4)
    assert float(rows[2][2]) == pytest.approx(-(sum(parts) / 3).log().mean().item(), abs=1e-4)
    assert float(rows[2][2]) < sum(float(row[1]) for row in rows) / 3  # by Jensen's inequality
    (tmp_path / "reversed.txt").write_text(text.read_text()[::-1])
    train_tiny("gpt", tmp_path / "reversed.txt", tmp_path / "another")
    with pytest.raises(UserError, match="another text"):
        ensemble.main([str(folders[0]), str(tmp_path / "another")])


def test_every_character_is_of_one_kind():
    text = "Kate:\nI say: come, Bianca, sit by Kate.\n\nFirst Lord:\nBianca!"
    found = names.kinds(text, known="sit by Kate, I say")
    shown = ["".join(c for c, of_kind in zip(text, mask) if of_kind) for mask in found.values()]
    assert shown[:2] == ["Kate:First Lord:", "BiancaBianca"]
    assert torch.stack([*found.values()]).sum(dim=0).eq(1).all()


def test_the_mean_of_every_loss_is_the_validation_loss(tmp_path):
    train_tiny("modern_gpt", write_text(tmp_path / "corpus.txt"), tmp_path / "run")
    model, data = measuring.model_and_text(tmp_path / "run")
    losses = names.every_loss(model, data)
    assert len(losses) == len(data.splits["val"]) - 1
    assert losses.mean().item() == pytest.approx(modern_gpt.evaluate(model, data), rel=1e-5)


def test_a_student_learns_from_its_teachers_and_is_a_run_like_any_other(tmp_path, capsys):
    text = write_text(tmp_path / "corpus.txt")
    train_tiny("gpt", text, tmp_path / "teacher")
    flags = argv_of(**tiny_flags("modern_gpt"), data=text, out=tmp_path / "run", device="cpu", warmup_iters=1)
    flags += [f"--teachers={tmp_path / 'teacher'}", "--eval_interval=5"]
    student.main([*flags, "--max_iters=10"])
    student.main([*flags, "--max_iters=15", "--resume"])
    losses = [loss for loss in read(tmp_path / "run")["val_loss"] if loss is not None]
    assert losses[-1] < losses[0] and load_checkpoint(tmp_path / "run")["step"] == 15
    capsys.readouterr()
    sample.main([str(tmp_path / "run"), "--prompt=to be", "--max_new_tokens=5", "--device=cpu"])
    assert len(capsys.readouterr().out) == len("to be") + 5 + 1
    for refused, line in (
        ([*flags[:-2], "--max_iters=10"], "--teachers names no run"),
        ([*flags, f"--teachers={tmp_path / 'run'}"], "a student cannot have its own folder"),
        ([*flags, "--block_size=32"], "it reads 16 characters at a time, less than --block_size 32"),
        ([*flags, "--vocab_size=260"], "its tokens are not those of this run"),
    ):
        with pytest.raises(UserError, match=line):
            student.main(refused)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_student_that_predicts_what_its_teachers_do_learns_from_the_text_alone(share):
    """The cross-entropy with the teachers' probabilities is least where the student has them too."""
    model = far_from_start(student.GPT(student.Config(**tiny_flags("modern_gpt"), share=share), 5)).eval()
    model.requires_grad_(True)
    x, y = torch.randint(5, (2, 4, 16))
    gradients = [
        torch.autograd.grad(loss, model.head.weight)[0]
        for loss in (student.loss_of(model, [model], x, y), (1 - share) * modern_gpt.loss_of(model, x, y))
    ]
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_ways_of_measuring():
    """On a model that knows how many characters it has read: then each way has a loss that can be written down."""

    class Counts(torch.nn.Module):
        def forward(self, x):  # -ln p of the character after the first t + 1 is ln(2) / (t + 1)
            p = torch.exp(-math.log(2) / torch.arange(1.0, x.shape[1] + 1)).expand(x.shape)
            return torch.stack((p, 1 - p), dim=-1).log()

    def mean(T):
        return sum(math.log(2) / t for t in range(1, T + 1)) / T

    ids, T = torch.zeros(4 * 8 + 1, dtype=torch.uint8), 8
    losses = measuring.every_window(Counts(), ids, T)
    assert losses.shape == (32, 8) and losses[-1].isnan().sum() == 7
    assert measuring.apart(losses, 8) == pytest.approx(mean(8))
    assert measuring.apart(losses, 4) == pytest.approx(mean(4))
    assert measuring.sliding(losses, 8) == pytest.approx(mean(8))
    assert measuring.sliding(losses, 1) == pytest.approx((8 * mean(8) + 24 * math.log(2) / 8) / 32)
    half = sum(math.log(2) / t for t in range(5, 9)) / 4
    assert measuring.sliding(losses, 4) == pytest.approx((8 * mean(8) + 24 * half) / 32)
    assert list(measuring.estimates(losses, 3)) == pytest.approx([mean(8)] * 20)


def test_in_upper_case_both_cases_of_a_letter_are_right(tmp_path):
    (tmp_path / "text").write_text("AaBb" * 50)
    data = Dataset(
        gpt.Config(data=str(tmp_path / "text"), block_size=3, device="cpu")
    )  # of 20 characters, 19 predicted

    class Same(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(*x.shape, 4)  # of A, B, a, b

    expected = -(9 * math.log(0.1 + 0.3) + 10 * math.log(0.2 + 0.4)) / 19
    assert measuring.in_upper_case(Same(), data) == pytest.approx(expected)
