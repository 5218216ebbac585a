"""The page in a real browser: layout, charts, cursor and colours."""

import contextlib
import re

import pytest
from report_runs import STEPS, loss, make_hostile_run, make_run, seconds, tokens, train_line

from gptjax.report.page import write_report


@contextlib.contextmanager
def opened(browser, path, width, **options):
    """The page in a window of this width; console messages, errors and requests fail the test."""
    context = browser.new_context(viewport={"width": width, "height": 850}, **options)
    page = context.new_page()
    messages = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: messages.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_selector(".card .uplot canvas", state="attached")
    yield page
    context.close()
    assert messages == [path.as_uri()]


def card_of(page, title):
    return page.locator(".card").filter(has=page.locator(f"strong:text-is('{title}')"))


def curves(page, title):
    """The extent in pixels of each visible curve of a chart."""
    return page.evaluate(
        """(title) => {
            const { plot } = cards.find((card) => card.title === title);
            return plot.series.flatMap(({ show }, i) => {
                const known = plot.data[0].filter((_, j) => typeof plot.data[i][j] === "number");
                const values = plot.data[i].filter((value) => typeof value === "number");
                const span = (scale, values) => {
                    const at = values.map((value) => plot.valToPos(value, scale));
                    return Math.max(...at) - Math.min(...at);
                };
                return i && show ? [{ width: span("x", known), height: span("y", values) }] : [];
            });
        }""",
        title,
    )


def ticks(page, title, axis):
    """The labels of the ticks of x (axis 0) or y (1) of a chart."""
    return page.evaluate(
        """([title, axis]) => cards.find((card) => card.title === title).plot.axes[axis]._values""",
        [title, axis],
    )


def slide(page, name, value):
    page.evaluate(
        """([name, value]) => {
            const slider = document.querySelector(`input[name=${name}]`);
            slider.value = value;
            slider.dispatchEvent(new Event("input", { bubbles: true }));
        }""",
        [name, value],
    )


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_page_fits_the_window_and_draws(browser, tmp_path, width):
    path = write_report(make_hostile_run(tmp_path), [make_run(tmp_path / ("long-name" * 12))])
    with opened(browser, path, width) as page:
        page.evaluate("for (const d of document.querySelectorAll('details')) d.open = true")
        page.wait_for_timeout(200)
        for x in ("tokens", "seconds", "flops", "step"):
            page.check(f"input[value={x}]", force=True)
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            for title in ("Loss", "Bits per byte", "Learning rate", "Gradient norm", "Throughput"):
                card = card_of(page, title)
                n = 4 if title in ("Loss", "Bits per byte") else 2
                assert card.locator(".u-series button").count() == n
                for drawn in curves(page, title):
                    assert drawn["width"] > 100 and drawn["height"] > 10
                assert len(curves(page, title)) == n
                assert len(ticks(page, title, 0)) >= 2 and len(ticks(page, title, 1)) >= 2
        assert card_of(page, "MFU").locator("canvas").count() == 0


@pytest.mark.slow
def test_cursor_axes_and_smoothing_show_exact_values(browser, tmp_path):
    path = write_report(make_run(tmp_path / "run"))
    with opened(browser, path, 1000) as page:
        card = card_of(page, "Loss")
        outputs = card.locator(".u-series:not(:first-child):not(.faint) .u-value")
        x_label, x_value = (
            card.locator(f".u-series:first-child .u-{x}") for x in ("label", "value")
        )

        def read():
            return [float(text) for text in outputs.all_text_contents()]

        def hover(share):  # of the x axis
            plot = card.locator(".u-over").bounding_box()
            page.mouse.move(plot["x"] + share * plot["width"], plot["y"] + 50)

        last = [loss(100), loss(104) + 1]
        assert read() == pytest.approx(last, rel=1e-3)
        assert (x_label.text_content(), x_value.text_content()) == ("tokens", "last")
        hover(tokens(40) / tokens(104))
        assert read() == pytest.approx([loss(40), loss(25) + 1], rel=1e-3)
        assert x_value.text_content() == "20.48K"
        # The other charts show the same place.
        norm = card_of(page, "Gradient norm").locator(".u-series:last-child .u-value")
        assert norm.text_content() == "1.4"
        page.check("input[value=flops]", force=True)
        hover(tokens(30) / tokens(104))
        assert read() == pytest.approx([loss(30), loss(25) + 1], rel=1e-3)
        assert x_value.text_content() == "4.152B"  # 30 x 512 x 270,336
        page.check("input[value=seconds]", force=True)
        hover(seconds(70) / 39.5)
        assert read() == pytest.approx([loss(70), loss(75) + 1], rel=1e-3)
        assert x_label.text_content() == "seconds of training"
        labels = ticks(page, "Loss", 0)
        assert labels[:2] == ["0", "10"]

        page.mouse.move(0, 0)
        slide(page, "from", 0.5)  # of 39.5 seconds
        labels = ticks(page, "Loss", 0)
        assert labels[0] == "25"  # the first line from there on is that of step 70
        slide(page, "from", 0)
        slide(page, "smoothing", 0.9)
        weights = [0.9 ** (len(STEPS) - 1 - i) for i in range(len(STEPS))]
        smoothed = sum(w * loss(s) for w, s in zip(weights, STEPS, strict=True)) / sum(weights)
        assert read() == pytest.approx([smoothed, last[1]], rel=1e-3)  # val loss is not smoothed
        assert len(curves(page, "Loss")) == 3  # the raw training loss stays, faintly

        card.locator("button:visible").first.click()  # hides the training loss
        page.mouse.move(0, 0)
        assert outputs.all_text_contents()[0] == "–"
        assert len(curves(page, "Loss")) == 1

        page.check("input[name=logX]")  # no value at x = 0, and ticks of a logarithmic axis
        assert page.evaluate("cards[0].plot.scales.x.min") > 0


@pytest.mark.slow
def test_legends_name_what_differs(browser, tmp_path):
    rates = {"optim/head_learning_rate": 4.0, "optim/muon_learning_rate": 2.0}
    lines = [train_line(step, **rates) for step in STEPS]
    for step in STEPS:
        lines.append({"step": step, "val/a/loss": 1.0 * step, "val/b/loss": 2.0 * step})
    path = write_report(make_run(tmp_path / "run", lines))
    with opened(browser, path, 1000) as page:
        labels = {
            title: card_of(page, title).locator(".u-series button").all_text_contents()
            for title in ("Learning rate", "Validation loss by source", "Gradient norm")
        }
    assert labels == {
        "Learning rate": ["learning_rate", "head_learning_rate", "muon_learning_rate"],
        "Validation loss by source": ["a", "b"],
        "Gradient norm": ["grad_norm"],
    }


@pytest.mark.slow
def test_seeds_are_a_mean_in_a_band_or_a_curve_each(browser, tmp_path):
    offsets = (0.0, 0.4)
    runs = [
        make_run(
            tmp_path / f"best-s{i}",
            [train_line(step, **{"train/loss": step + offset}) for step in STEPS],
        )
        for i, offset in enumerate(offsets)
    ]
    path = write_report(runs[0], runs[1:])
    with opened(browser, path, 1000) as page:
        shown = card_of(page, "Loss").locator(".u-series:not(:first-child):not(.faint)")
        assert shown.locator("button").all_text_contents() == ["best, mean of 2 train"]
        assert shown.locator(".u-value").all_text_contents() == ["100.2"]
        # Two edges and the mean; the errors are 0.4 / sqrt(2) / sqrt(2) on each side.
        edges = page.evaluate("cards[0].plot.data.slice(1).map((column) => column.at(-1))")
        assert edges == pytest.approx([100.4, 100.0, 100.2])
        assert page.evaluate("cards[0].plot.bands.length") == 1
        slide(page, "smoothing", 0.5)
        assert len(curves(page, "Loss")) == 3
        slide(page, "smoothing", 0)
        shown.locator("button").click()  # hides the band, too
        assert curves(page, "Loss") == []
        page.check("input[name=seeds]")
        assert shown.locator("button").all_text_contents() == ["best-s0 train", "best-s1 train"]
        assert page.evaluate("cards[0].plot.bands.length") == 0


@pytest.mark.slow
def test_colours_follow_the_system(browser, tmp_path):
    path = write_report(make_run(tmp_path / "run"))
    light = []
    for scheme in ("light", "dark"):
        with opened(browser, path, 800, color_scheme=scheme) as page:
            colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
            light.append(sum(map(int, re.findall(r"\d+", colour))) / 3)
    assert light[0] > 200 and light[1] < 60
