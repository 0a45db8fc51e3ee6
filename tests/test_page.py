"""The ladder on one page, in a real browser if there is one. No browser is downloaded."""

import csv
import itertools
import json
import os
import re
import shutil

import pytest
import torch
from conftest import train_tiny, write_text

import sample
from data import UserError
from studies import page, pictures, tables

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
QUIET = "--disable-gpu --disable-background-networking --disable-component-update --disable-sync --no-first-run"
EVIL = "</script><script>hacked = 1</script>"
TEXT = "to <script>be or not"
NAME = "mine<script>" if os.name == "posix" else "mine"  # Windows has no such names


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A page with tiny runs: where it is, and where the runs are."""
    folder = tmp_path_factory.mktemp("page")
    text = write_text(folder / "corpus.txt")
    text.write_text(text.read_text(encoding="utf-8") + EVIL, encoding="utf-8")
    train_tiny("gpt", text, folder / "trained" / "gpt")
    train_tiny("pyg_free_gat", text, folder / "trained" / "gat", layer="gat")
    train_tiny("windowed_gpt", text, folder / NAME, max_iters=6)
    (folder / NAME / "sample.txt").write_text(f"It wrote {EVIL}", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "RESULTS", folder)
        patch.setattr(page, "TRAINED", folder / "trained")
        page.main([f"--run={folder / NAME}", f"--text={TEXT}", f"--out={folder / 'ladder.html'}"])
    return folder / "ladder.html", folder


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    if not (path := next(filter(None, map(shutil.which, BROWSERS)), None)):
        pytest.skip(f"there is no browser: none of {', '.join(BROWSERS)}")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", *QUIET.split()])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The page as a fresh clone makes it, with the published weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "RESULTS", tmp_path_factory.mktemp("results"))
        page.main([f"--out={page.RESULTS / 'ladder.html'}"])
        return page.RESULTS / "ladder.html"


@pytest.fixture
def opened(made, browser):
    """Opens a page at an address, in a window so wide. At the end: it said nothing, and no request has left."""
    said, asked, contexts = [], [], []

    def open_(address="", width=1280, path=None, **how):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, **how))
        tab = contexts[-1].new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto((path or made[0]).as_uri() + address)
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert said == [] and asked
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


# ---------------------------------------------------------------- Without a browser


def data_of(path):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(encoding="utf-8"))[1]
    )


def test_it_is_small_and_nothing_in_it_ends_a_script(made):
    text = made[0].read_text(encoding="utf-8")
    assert len(text.encode()) < 3e6
    assert text.count("</script>") == 2 and text.count("<script>") == 1 and EVIL not in text
    assert not re.search(
        r"""(src|href)=["']?(https?:)?//|@import|url\(|fetch\(|import\(""", text.split('id="data">')[0]
    )


def test_its_numbers_are_those_of_the_readme(made):
    data = data_of(made[0])
    for rung, row in zip(data["rungs"], list(tables.ladder())[2:], strict=True):
        assert f"| **{rung['loss']}** | {rung['parameters']} | {rung['time']} |" in row and rung["file"] in row
    last = {
        run["name"]: f"{run['val'][-1]:.3f} ± {run['spread'][-1]:.3f}" for run in data["curves"] if run["seeds"] > 1
    }
    assert {name: said == page.spread(tables.losses(name)) for name, said in last.items()} == dict.fromkeys(last, True)
    assert len(last) > 5 and data["curves"][0]["name"] == NAME
    assert {run["name"] for run in data["curves"][1:]} == {
        re.sub(r"-\d$", "", folder.parent.name) for folder in page.PUBLISHED.glob("*/sample.txt")
    }


@pytest.mark.parametrize("pair", [*itertools.pairwise([*page.RUNGS, page.RUNGS[0]])], ids=" ".join)
def test_two_files_stand_side_by_side_whole_and_in_order(pair):
    old, new = ((tables.ROOT / rung).read_text(encoding="utf-8").splitlines() for rung in pair)
    found = [[], []]
    for part in page.stretches(old, new):
        if isinstance(part[0], int):
            i, j, n = part
            assert old[i : i + n] == new[j : j + n]
            part = [[i + k, j + k, [], []] for k in range(n)]
        for i, j, *marks in part:
            found[0] += [i] * (i >= 0)
            found[1] += [j] * (j >= 0)
            if marks:  # what is not marked is the same
                rest = []
                for line, spans in zip((old[i], new[j]), marks):
                    rest.append("".join(c for k, c in enumerate(line) if not inside(k, spans)))
                assert rest[0] == rest[1]
    assert found == [[*range(len(old))], [*range(len(new))]]


def inside(k, spans):
    return any(start <= k < end for start, end in zip(spans[::2], spans[1::2]))


def test_the_colours_are_those_of_the_tokens():
    code = 'class A:  # "no"\n    """Two\n    rows."""\n    x = f(1, "a")\n'
    texts = [
        [(line[0][start:end], kind) for start, end, kind in zip(line[1::3], line[2::3], line[3::3])]
        for line in page.coloured(code)
    ]
    assert texts == [
        [("class", "k"), ("A", "d"), ('# "no"', "c")],
        [('"""Two', "s")],
        [('    rows."""', "s")],
        [("1", "n"), ('"a"', "s")],
    ]


def test_what_is_missing_is_left_out_and_said(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    monkeypatch.setattr(page, "TRAINED", tmp_path / "trained")
    monkeypatch.setattr(page, "RUNGS", page.RUNGS[:2])
    for name in ("broken", "gpt-2026-11-22-143005"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("step,tokens,seconds,train_loss,val_loss\n1,2,3,nan,\n")
    page.main([f"--out={tmp_path / 'ladder.html'}"])
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("left out: ")] == [
        f"left out: {tmp_path / 'broken' / 'metrics.csv'}: not the losses of a run (train_loss is nan)"
    ]
    assert sum(line.startswith("left out, what the heads of ") for line in said) == len(page.HEADS)
    assert sum(line.startswith("left out, the model of ") for line in said) == len(page.weights.MODELS)
    data = data_of(tmp_path / "ladder.html")
    assert said[-1] == str(tmp_path / "ladder.html") and data["attention"]["models"] == data["models"] == []


def test_wrong_input_is_one_line(made, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "TRAINED", made[1] / "trained")
    runs, thesis = made[1] / "trained", tmp_path / "thesis.html"
    thesis.write_text("precious")
    for flags, line in {
        ("--run=nowhere",): "nowhere.checkpoint.pt: there is no checkpoint here",
        (f"--run={runs / 'gpt'}", "--text=ß"): "'ß' is not in the alphabet",
        (f"--out={tmp_path / 'no' / 'ladder.html'}",): "No such file or directory",
        ("--out=ladder.png",): "ladder.png: must end in .html",
        (f"--out={thesis}",): "thesis.html: this file was not written by this command",
        ("--runs=a",): "there is no flag --runs; did you mean --run?",
    }.items():
        with pytest.raises(UserError, match=line) as error:
            page.main([f"--out={tmp_path / 'ladder.html'}", *flags])
        assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.html"] and thesis.read_text() == "precious"


# ---------------------------------------------------------------- In a browser


def test_folds_opens_chooses_and_links(opened):
    tab = opened()
    shown = tab.locator("#diff thead").inner_text().split()
    assert shown == ["single_head.py", "multi_head.py"]
    fold = tab.locator("#diff button").first
    count = int(re.fullmatch(r"(\d+) lines the same", fold.inner_text())[1])
    rows = tab.locator("#diff tr.same:visible")
    before = rows.count()
    fold.focus()
    for more, expanded in ((count, "true"), (0, "false")):
        tab.keyboard.press("Enter")
        assert rows.count() == before + more and fold.get_attribute("aria-expanded") == expanded
    tab.get_by_role("link", name="gpt.py → modern_gpt.py").click()
    assert tab.url.endswith("#gpt.py...modern_gpt.py")
    tab.locator("#left").select_option("block.py")
    assert tab.locator("#diff thead").inner_text().split() == ["block.py", "modern_gpt.py"]
    tab.locator("#right").select_option("bigram.py")
    assert tab.locator(".card h3").all_inner_texts() == ["block.py", "bigram.py"]
    marked = tab.locator("#diff td.new mark").first
    assert marked.inner_text().strip()

    lines = (tables.ROOT / "gpt.py").read_text(encoding="utf-8").splitlines()
    number = next(i for i, line in enumerate(lines, 1) if "def learning_rate_at" in line)
    tab = opened(f"#gpt.py-L{number}")
    assert tab.locator("#diff thead").inner_text().split() == ["transformer.py", "gpt.py"]
    target = tab.locator("tr.target")
    assert target.is_visible() and "def learning_rate_at(step, config):" in target.inner_text()
    equal = next(i for i, line in enumerate(lines, 1) if line == "import torch")  # folds away
    tab.evaluate(f"location.hash = 'gpt.py-L{equal}'")
    tab.wait_for_function("document.querySelector('tr.target').innerText.includes('import torch')")
    assert target.is_visible() and target.locator("td").nth(3).inner_text() == "import torch"


def test_reads_off_what_metrics_csv_says(made, opened):
    with open(made[1] / NAME / "metrics.csv", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["val_loss"]]
    tab = opened()
    mine = tab.locator("#values tr").filter(has_text=NAME)

    def says(row, axis="step"):
        value = float(row[axis])
        losses = [f"{float(row[name]):.4f}" for name in ("val_loss", "train_loss")]
        return [f"{value:,.3f}".rstrip("0").rstrip("."), *losses]

    assert mine.locator("td").all_inner_texts() == says(rows[-1])  # at rest, the last one
    tab.locator("#runs fieldset", has_text="the ladder").get_by_text("all", exact=True).click()  # off
    assert tab.locator("#values tr").count() == 1
    tab.locator("#plot").focus()
    for row in rows:
        tab.keyboard.press("ArrowRight")
        assert mine.locator("td").all_inner_texts() == says(row)
    for axis, column in (("seconds", "seconds"), ("tokens", "tokens")):
        tab.get_by_role("button", name=axis, exact=True).click()
        tab.get_by_role("button", name="linear", exact=True).click()
        box = tab.locator("#plot").bounding_box()
        x = tab.evaluate(
            "view.place({ x: data.curves[0][view.over][data.curves[0].val.findIndex(Boolean)], loss: 1 })[0]"
        )
        tab.mouse.move(box["x"] + x + 1, box["y"] + 50)
        assert mine.locator("td").all_inner_texts() == says(rows[0], column)
    paths = tab.locator("#plot path")
    drawn = paths.count()
    tab.locator("#training").check()
    assert paths.count() == drawn + 1
    mine_button = tab.locator("#runs").get_by_role("button", name=NAME)
    mine_button.click()
    assert mine_button.get_attribute("aria-pressed") == "false" and mine.count() == 0


def test_pointing_at_a_character_shows_the_weights_that_the_model_has(made, opened):
    tab = opened()
    runs = [made[1] / NAME, *(made[1] / "trained" / run for run in ("gpt", "gat"))]
    weights = [torch.stack(pictures.weights_of(run, TEXT)[0]) for run in runs]  # (n_layer, H, T, T)
    T = weights[0].shape[-1]
    hidden = len(TEXT) - T  # a context of 16 has the end of the text only
    assert hidden > 0 and tab.locator(".model h3").all_inner_texts()[:2] == [NAME, "dot product"]
    pixels = """canvas => {
        const copy = new OffscreenCanvas(canvas.width, 1).getContext("2d", { willReadFrequently: true });
        copy.drawImage(canvas, 0, 0);
        const { data } = copy.getImageData(0, 0, canvas.width, 1);
        return Array.from({ length: canvas.width }, (_, x) => (data[4 * x + 3] / 255) ** 2);
    }"""
    for i, layer, head in ((T - 1, 0, 0), (5, 1, 1), (0, 0, 1)):
        tab.locator(".strips").first.get_by_role("button", name=f"block {layer + 1}, head {head + 1}").click()
        tab.locator("#line span").nth(hidden + i).hover()
        for model, (run, has) in enumerate(zip(runs, weights)):
            card = tab.locator(".model").nth(model)
            said = card.locator(".matrix + p").inner_text()
            assert said.startswith(
                f"Block {layer + 1}, head {head + 1}: “{TEXT[hidden + i].replace(' ', '␣')}” reads "
            ), run
            numbers = [float(number) for number in re.findall(r"\d\.\d{3}", said)]
            expected = has[layer, head, i].sort(descending=True).values[: len(numbers)]
            assert numbers and (torch.tensor(numbers) - expected).abs().max() < 1 / 255
            for k, canvas in enumerate(card.locator(".letters canvas").all()):
                drawn = torch.tensor(canvas.evaluate(pixels))
                assert (drawn - has[k // 2, k % 2, i]).abs().max() < 2 / 255  # 1 for the bytes, 1 for the colours
    tab.locator("#line").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("#line").get_attribute("aria-valuenow") == str(hidden + 2)


def test_a_cell_shows_the_row_and_the_column_that_make_it(opened):
    x, w_q, w_k, w_v, w_o = pictures.head_numbers(8)
    q, k, v = x @ w_q, x @ w_k, x @ w_v
    mask = torch.ones(8, 8).tril() == 0
    D = {"general": 1, "causal": 1, "scaled": 6}
    tab = opened()
    for stage, scale in D.items():
        tab.get_by_role("button", name=stage, exact=True).click()
        scores = q @ k.T / scale**0.5
        scores = scores.masked_fill(mask & (stage != "general"), -torch.inf)
        for name, matrix in {"scores": scores, "weights": scores.softmax(-1), "read": scores.softmax(-1) @ v}.items():
            said = tab.locator("#matrices table", has=tab.get_by_text(name, exact=True)).locator("td[style]")
            shown = [float(cell.replace("−", "-").replace("∞", "inf")) for cell in said.all_text_contents()]
            torch.testing.assert_close(torch.tensor(shown), matrix.flatten(), atol=0.0051, rtol=0)
    scores = tab.locator("#matrices table", has=tab.get_by_text("scores", exact=True))
    scores.locator("td[style]").nth(8 * 4 + 3).hover()
    products = [f"{a * b:.2f}".replace("-", "−") for a, b in zip(q[4].tolist(), k[3].tolist())]
    assert tab.locator("#says td:nth-child(3)").all_inner_texts() == products
    assert tab.locator("#matrices .from").count() == 12
    scores.locator("td[style]").nth(8 * 4 + 3).focus()
    tab.keyboard.press("ArrowUp")
    assert tab.locator("#says h3").inner_text().startswith("scores, row 4, column 4: ")
    tab.get_by_role("button", name="projected", exact=True).click()
    heads = [q[:, h].contiguous() @ k[:, h].T / 3**0.5 for h in (slice(0, 3), slice(3, 6))]
    read = [s.masked_fill(mask, -torch.inf).softmax(-1) @ v[:, h] for s, h in zip(heads, (slice(0, 3), slice(3, 6)))]
    cells = tab.locator("#matrices table", has=tab.get_by_text("out", exact=True)).locator("td[style]")
    shown = torch.tensor([float(cell.replace("−", "-")) for cell in cells.all_text_contents()]).view(8, 6)
    torch.testing.assert_close(shown, torch.cat(read, dim=1) @ w_o, atol=0.0051, rtol=0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_has_one_column_and_scrolls_down_only(opened, scheme):
    tab = opened("#block.py...gpt.py", width=390, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert tab.locator("#diff tr.same:visible td:visible").count() in (
        0,
        2 * tab.locator("#diff tr.same:visible").count(),
    )
    lefts = {round(cell.bounding_box()["x"]) for cell in tab.locator("#diff td.new:not(.number)").all()[:20]}
    assert len(lefts) == 1
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) > 384) == (scheme == "light")


def test_what_a_run_says_shows_as_text(opened):
    tab = opened()
    assert tab.evaluate("typeof hacked") == "undefined"
    sample = tab.locator("#written figure").last
    assert sample.locator("pre").inner_text() == f"It wrote {EVIL}" and sample.locator("b").inner_text() == NAME
    assert tab.locator("#line").inner_text().replace("\xa0", " ") == TEXT
    assert tab.locator("#runs").get_by_role("button", name=NAME).count() == 1
    assert tab.locator("#written figure").count() == len(page.WRITERS) + 1


# ---------------------------------------------------------------- The models in the page

PROMPT = "ROMEO:\nBut soft, what light through yonder window breaks?\nIt is the east, and Juliet is the sun. Arise, f"


def ids_of(tab):
    return tab.evaluate("text => [...text].map((character) => new Model(data.models[0]).idOf.get(character))", PROMPT)


def test_the_models_in_the_page_compute_what_pytorch_does_with_the_same_weights(whole, opened):
    tab = opened(path=whole)
    read = "([ids, n]) => new Reading(live.models[n]).read(ids).map((logits) => [...logits])"
    write = """([ids, n]) => {
        const writer = new Writer(live.models[n]);
        for (let k = 0; k < 25; k++) {
            const logits = writer.next(ids);
            ids.push(logits.indexOf(Math.max(...logits)));
        }
        return ids;
    }"""
    for number, run in enumerate(page.weights.MODELS):
        module, model, tokenizer = sample.load(page.PUBLISHED / run, "cpu")
        model.load_state_dict(page.weights.in_eight_bits(model.state_dict()))
        ids = tokenizer.encode(PROMPT).long()[None, : model.config.block_size]
        assert ids[0].tolist() == ids_of(tab)[: ids.shape[1]]
        with torch.inference_mode():
            logits = model.eval()(ids)[0]
        found = torch.tensor(tab.evaluate(read, [ids[0].tolist(), number]))
        torch.testing.assert_close(found, logits, atol=1e-3, rtol=0, msg=run)
        start = len(PROMPT) if hasattr(model, "new_cache") else 20  # beyond a window of 128 where that is fast
        prompt = tokenizer.encode(PROMPT)[:start].long()[None]
        theirs = module.generate(model, prompt, 25, top_k=1)[0].tolist()
        assert tab.evaluate(write, [prompt[0].tolist(), number]) == theirs, run


def test_the_page_of_a_fresh_clone_is_whole(whole, opened):
    assert whole.stat().st_size < 10e6
    tab = opened(path=whole)
    assert tab.locator("#readers .read-by").count() == len(page.weights.MODELS)
    assert tab.locator(".model h3").all_inner_texts() == [name for name, _ in page.HEADS.values()]


def typed(tab, text):
    tab.locator("#typed").fill(text)
    tab.wait_for_function("document.getElementById('readers').dataset.read === document.getElementById('typed').value")


def test_a_character_is_coloured_by_its_loss(whole, opened):
    tab = opened(path=whole)
    typed(tab, "the quality of mercy")
    module, model, tokenizer = sample.load(page.PUBLISHED / "gpt", "cpu")
    model.load_state_dict(page.weights.in_eight_bits(model.state_dict()))
    ids = tokenizer.encode("the quality of mercy").long()
    with torch.inference_mode():
        log_p = model.eval()(ids[None])[0].log_softmax(-1)
    losses = -log_p[:-1].gather(1, ids[1:, None])[:, 0]
    row = tab.locator(".read-by", has_text="gpt.py").filter(has_not_text="windowed").first
    titles = [float(span.get_attribute("title").split()[0]) for span in row.locator(".surprise span").all()[1:]]
    torch.testing.assert_close(torch.tensor(titles), losses, atol=0.0051, rtol=0)
    assert row.inner_text().splitlines()[1].startswith(f"{losses.mean():.2f} nats: as unsure as among ")
    row.locator(".surprise span").nth(5).hover()
    bars = [float(cell.strip("< ")) for cell in tab.locator("#guess td").all_inner_texts()][:10]
    expected = log_p[4].exp().sort(descending=True).values[:10]
    torch.testing.assert_close(torch.tensor(bars), expected, atol=0.0011, rtol=0)


def test_whatever_is_typed_is_text_and_is_told(whole, opened):
    tab = opened(path=whole)
    typed(tab, EVIL)
    assert tab.evaluate("typeof hacked") == "undefined"
    assert tab.locator("#told").inner_text().endswith("left out: < / > = 1")
    typed(tab, "😀 wherefore")
    assert tab.locator("#told").inner_text().endswith("left out: 😀")
    assert tab.locator(".read-by").first.locator(".surprise").inner_text().strip() == "wherefore"
    tab.locator("#typed").fill("a" * 10_000)
    assert "first 500 characters" in tab.locator("#told").inner_text()
    tab.locator("#write").click()
    assert "shorten the text" in tab.locator("#told").inner_text()
    typed(tab, "😀")
    tab.locator("#step").click()
    tab.wait_for_function("document.getElementById('typed').value.length === 3")
    typed(tab, "")
    assert "a loss needs two characters" in tab.locator(".read-by").first.inner_text()


def test_it_writes_what_its_seed_says_and_stops(whole, opened):
    tab, texts = opened(path=whole), []
    for _ in range(2):
        typed(tab, "ROMEO:")
        tab.locator("#write").click()
        tab.wait_for_function("document.getElementById('typed').value.length > 60")
        tab.locator("#write").click()
        assert tab.locator("#write").inner_text() == "write with gpt.py"
        texts.append(tab.locator("#typed").input_value())
    shorter, longer = sorted(texts, key=len)
    assert longer.startswith(shorter) and len(shorter) > 60
    typed(tab, "ROMEO")
    tab.locator("#temperature").fill("0")
    tab.locator("#step").click()
    tab.wait_for_function("document.getElementById('typed').value === 'ROMEO:'")


def test_heads_read_the_line_that_was_typed(whole, opened):
    tab = opened(path=whole)
    typed(tab, "It is the east")
    tab.locator(".strips").first.get_by_role("button", name="block 3, head 2").click()  # which no first rung has
    tab.get_by_role("button", name="the line you typed").click()
    tab.locator(".model", has=tab.get_by_role("heading", name="gpt.py", exact=True)).get_by_role(
        "button", name="block 1, head 1"
    ).click()
    card = tab.locator(".model", has=tab.get_by_role("heading", name="gpt.py", exact=True))
    tab.locator("#line span").nth(13).hover()
    said = card.locator(".matrix + p").inner_text()
    _, model, tokenizer = sample.load(page.PUBLISHED / "gpt", "cpu")
    weights, _ = pictures.weights_of(page.PUBLISHED / "gpt", "It is the east")
    numbers = torch.tensor([float(number) for number in re.findall(r"\d\.\d{3}", said)])
    expected = weights[0][0, 13].sort(descending=True).values[: len(numbers)]
    assert len(numbers) and (numbers - expected).abs().max() < 0.03  # 8 bits a weight
