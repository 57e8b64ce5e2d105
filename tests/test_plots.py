"""Figures: words made from the numbers, grey, odd studies, nothing left open."""
import io
import re

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from sftdpo.plots import (
    MOST_LINES,
    MOST_ROWS,
    Picture,
    against_parameters,
    against_time,
    calibration,
    cell_comparison,
    cell_intervals,
    costs_of,
    dpo_course,
    learning_curves,
    looks_of,
    reliability,
    short,
    side_by_side,
    visible,
    with_cells,
    with_stages,
)
from sftdpo.tasks import RECIPES


def examples_of(cells, seeds=3, number=20, task="paraphrase"):
    "Examples of cells [(recipe, tuning, share right)], every share reached exactly."
    return pd.DataFrame([
        dict(run=f"{recipe}-{tuning}-{seed}", task=task, recipe=recipe, tuning=tuning, seed=seed, fold=0, id=str(i), correct=float((i + seed) % number < share * number),
             probability_yes=.7, probability_no=.3) for recipe, tuning, share in cells for seed in range(seeds) for i in range(number)])


def history_of(cells, seeds=2, steps=6, evaluations=True):
    lines = []
    for recipe, tuning in cells:
        for seed in range(seeds):
            for stage, kind in enumerate(RECIPES[recipe].stages, 1):
                here = dict(run=f"{recipe}-{tuning}-{seed}", task="sonnet", recipe=recipe, tuning=tuning, seed=seed, fold=0, stage=stage, kind=kind)
                for step in range(1, steps + 1):
                    # a shared first stage is the same in every recipe
                    line = here | dict(step=step, loss=3 / step + stage + .1 * seed)
                    if kind == "dpo": line |= dict(reward_margin=.1 * step, chosen_log_probability=-5. - step, rejected_log_probability=-6. - 2 * step)
                    lines.append(line)
                    if evaluations and step % 2 == 0: lines.append(here | dict(step=step, held_out_loss=4 / step) | ({f"held_out_{name}": line[name] for name in line if name.endswith(("margin", "probability"))}))
    return pd.DataFrame(lines)


def results_of(cells, seeds=2, metric="accuracy"):
    return pd.DataFrame([
        dict(run=f"{recipe}-{tuning}-{seed}", task="paraphrase", recipe=recipe, tuning=tuning, seed=seed, fold=0, metric=name, value=value)
        for place, (recipe, tuning) in enumerate(cells) for seed in range(seeds)
        for name, value in {metric: .6 + .01 * place, "stage1_sft_seconds": 10. * (place + 1), "stage1_sft_reference_seconds": 5., "parameters_trainable": 1e6 if tuning == "full" else 1e4}.items()])


CELLS = [(recipe, tuning) for recipe in ("sft", "dpo", "sft-dpo", "sft-sft") for tuning in ("full", "lora")]


@pytest.fixture(autouse=True)
def nothing_stays_open():
    import matplotlib.pyplot as plt
    yield
    assert plt.get_fignums() == []


def sound(picture):
    "Drawn, worded, and no word of mathematics in it."
    assert isinstance(picture, Picture) and len(picture.alternative) > 20
    drawn = picture.svg()
    assert drawn.startswith("<svg") and "<script" not in drawn and "<metadata" not in drawn and "<!--" not in drawn
    assert not re.search(r"(href|src)=\"(?!#)", drawn), "a figure asks for nothing"
    assert "prefers-color-scheme:dark" in drawn
    return picture.alternative


def test_words_name_the_highest_cell_and_its_values():
    intervals = cell_intervals(examples_of([("sft", "full", .5), ("sft", "lora", .9), ("dpo", "full", .25)]), "correct")
    words = sound(cell_comparison(intervals, "accuracy", {"majority class": .6}))
    assert "high to low: sft lora 90.0 % (" in words and words.index("sft lora") < words.index("sft full") < words.index("dpo full")
    assert "majority class 60.0 %" in words
    lora = intervals.set_index("cell").loc["sft lora"]
    assert lora.seeds == 3 and lora.examples == 20 and lora.low < .9 < lora.high


def test_curves_tell_each_shared_stage_once():
    history = history_of(CELLS)
    found = with_stages(history)
    assert list(dict.fromkeys(found.path)) == ["SFT", "DPO", "SFT → DPO", "SFT → SFT"]
    assert found[found.path == "SFT"].run.nunique() == 4  # 2 tunings, 2 seeds, though 12 runs begin with it
    words = sound(learning_curves(history))
    assert words.count(" SFT, full: training loss") == 2 and "stage. SFT, full:" in words  # SFT, and SFT → SFT
    assert "held-out loss from 2 to 0.667" in words and "6 steps, 2 seeds" in words


def test_first_stages_that_differ_are_told_apart():
    history = history_of([("sft", "full"), ("sft-dpo", "full")])
    history.loc[(history.recipe == "sft-dpo") & (history.stage == 1), "loss"] += 1
    assert set(with_stages(history).query("path == 'SFT'").line.astype(str)) == {"sft full", "sft-dpo full"}


def test_dpo_course_tells_displacement():
    words = sound(dpo_course(history_of(CELLS)))
    assert "held-out pairs" in words and "log-probability of the chosen completion from −7 to −11, of the rejected one from −10 to −18" in words
    assert "training pairs" in sound(dpo_course(history_of(CELLS, evaluations=False)))


def test_costs():
    costs = costs_of(results_of(CELLS))
    assert costs.seconds.min() == 10  # the reference pass is part of a stage's seconds, not added to it
    assert "Least training time: sft full; most: sft-sft lora" in sound(against_time(costs, "accuracy"))
    assert "sft-sft lora 67.0 % at 10k" in sound(against_parameters(costs, "accuracy"))


def test_calibration_has_a_panel_per_recipe():
    examples = examples_of([("base", "-", .5), ("sft", "full", .7), ("sft", "lora", .9)])
    picture = calibration(reliability(examples))
    assert len(picture.axes) == 2
    assert "sft full 0.0 %" in sound(picture) and "sft lora 20.0 %" in picture.alternative


@pytest.mark.parametrize("picture", [
    lambda: learning_curves(pd.DataFrame()), lambda: dpo_course(pd.DataFrame()), lambda: dpo_course(history_of([("sft", "full")])),
    lambda: cell_comparison(cell_intervals(examples_of([("sft", "full", .5)]).drop(columns="correct"), "correct"), "accuracy"),
    lambda: calibration(reliability(examples_of([("sft", "full", .5)])[["run", "recipe", "tuning", "correct"]])),
    lambda: against_time(costs_of(results_of(CELLS).query("metric == 'accuracy'")), "accuracy"),
    lambda: against_parameters(costs_of(results_of([("base", "-")])), "accuracy")])
def test_what_is_missing_is_said(picture):
    assert len(picture().axes) == 0 and sound(picture()).endswith(".")


@pytest.mark.parametrize("cells, seeds", [([("sft", "full")], 1), (CELLS, 1), ([("sft-long", "lora"), ("mine", "own")], 2)])
def test_few_seeds_few_cells_unknown_recipes(cells, seeds):
    history = history_of([cell for cell in cells if cell[0] in RECIPES], seeds)
    sound(learning_curves(history))
    sound(cell_comparison(cell_intervals(examples_of([(*cell, .5) for cell in cells], seeds), "correct"), "accuracy"))
    sound(against_time(costs_of(results_of(cells, seeds)), "accuracy"))


def test_one_seed_and_one_example_have_no_interval():
    intervals = cell_intervals(examples_of([("sft", "full", 1.)], 1, 1).assign(correct=3.5), "correct")
    assert "(no interval)" in sound(cell_comparison(intervals, "chrf"))


def test_values_that_are_no_numbers():
    examples, history, results = examples_of([("sft", "full", .5), ("dpo", "full", .5)]), history_of(CELLS), results_of(CELLS)
    examples.loc[examples.recipe == "dpo", "correct"] = np.nan
    examples.loc[0, "correct"] = np.inf
    history.loc[::3, "loss"] = np.nan
    history.loc[5, "loss"] = np.inf
    results.loc[::2, "value"] = np.nan
    intervals = cell_intervals(examples, "correct")
    assert list(intervals.cell) == ["sft full"]
    for picture in (cell_comparison(intervals, "accuracy"), learning_curves(history), dpo_course(history), against_time(costs_of(results), "accuracy")): sound(picture)


def test_forty_cells_with_long_names():
    examples = pd.concat(examples_of([(recipe, tuning, .1 + k / 20)], 1, 10).assign(run=f"{recipe}{tuning}{k}") for recipe in ("sft", "dpo") for tuning in ("full", "lora") for k in range(10))
    variants = {run: f"a.very.long.setting.name {'and value ' * 9}{run}" for run in examples.run.unique()}
    picture = cell_comparison(cell_intervals(with_cells(examples, variants), "correct"), "accuracy")
    sound(picture)
    assert len(picture.axes[0].get_yticks()) == 40 and picture.get_figwidth() == 6.4
    history = pd.concat(history_of([("sft", "full")], 1).assign(run=f"r{k}", loss=lambda table, k=k: table.loss + k) for k in range(20))
    words = sound(learning_curves(with_stages(with_cells(history, {f"r{k}": f"rate {k}" for k in range(20)}))))
    assert f"Of 20 lines the last {20 - MOST_LINES} are grey" in words


def test_hundreds_of_cells_are_cut_and_counted():
    intervals = cell_intervals(with_cells(pd.concat(examples_of([("sft", "full", .5)], 1, 4).assign(run=f"r{k}") for k in range(200)), {f"r{k}": f"rate {k}" for k in range(200)}), "correct")
    picture = cell_comparison(intervals, "accuracy")
    assert f"The {MOST_ROWS} highest of 200 cells are drawn" in sound(picture) and picture.get_figheight() < 20


def test_names_are_no_mathematics_and_no_markup():
    hostile = "$\\frac{1}{0}$ <script>alert(1)</script> & \x00\x1b[2J\u202e\n" + "x" * 10**5
    examples = examples_of([(hostile, "full", .5), ("sft", "$x^2$", .7)])
    for picture in (cell_comparison(cell_intervals(examples, "correct"), "accuracy", {hostile: .5}), calibration(reliability(examples)),
                    against_time(costs_of(results_of([(hostile, "full"), ("sft", "$_")])), "accuracy"),
                    learning_curves(history_of([("sft", "full")]).assign(tuning=hostile, kind="<b>$"))):
        words = sound(picture)
        assert len(words) < 10_000 and not set(words) & {"\x00", "\x1b", "\u202e", "\n"}


def test_full_and_lora_differ_without_colour():
    full, lora = looks_of(["full", "lora"]).values()
    assert all(full[what] != lora[what] for what in ("linestyle", "marker", "fillstyle"))
    looks = looks_of(["full", "lora", *"abcdef"])
    assert len({(str(look["linestyle"]), look["marker"]) for look in looks.values()}) == 8
    picture = cell_comparison(cell_intervals(examples_of([("sft", "full", .5), ("sft", "lora", .5)]), "correct"), "accuracy")
    grey = np.asarray(Image.open(io.BytesIO(picture.png())).convert("L"))
    assert grey.min() < 100 and (grey > 250).mean() > .5  # dark on white


def test_cells_stand_in_the_order_of_recipes():
    table = with_cells(pd.DataFrame({"recipe": ["zzz", "sft-dpo", "sft", "base", "sft"], "tuning": ["full", "lora", "lora", "-", "full"]}))
    assert list(table.cell.cat.categories) == ["base", "sft full", "sft lora", "sft-dpo lora", "zzz full"]


def test_texts_side_by_side():
    texts = pd.DataFrame([dict(run=f"{tuning}{seed}", recipe="sft", tuning=tuning, seed=seed, fold=0, id=i, sample=k, prompt=f"p{i}", true=f"t{i}", generated=f"{tuning}{seed}{k}")
                          for seed in (1, 0) for tuning in ("lora", "full") for i in (7, 3, 5, 1) for k in (1, 0)])
    table = side_by_side(texts, prompts=2, cells=1)
    assert table.id.tolist() == [7, 3] and table.generated.tolist() == ["full00"] * 2
    assert side_by_side(texts.drop(columns="generated")).empty and side_by_side(pd.DataFrame()).empty


def test_names_in_one_line():
    assert short("a\nb\tc") == "a b c" and len(short("x" * 10**7)) == 36
    assert visible("\r\n\r\x7f\u200f") == "\n⟨U+000D⟩⟨U+007F⟩⟨U+200F⟩"
