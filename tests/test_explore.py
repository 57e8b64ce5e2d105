"The form over a stored study."
import re
import shlex

import pytest
from little import compare, small

import sftdpo.page.explore as explore
from sftdpo.cli import parse
from sftdpo.config import Search, to_yaml
from sftdpo.page.explore import Explorer, stored_studies, view_of


@pytest.fixture(scope="module")
def study():
    return lambda backbone, **changes: small(backbone, tasks=("paraphrase",), recipes=("sft", "dpo"), sweep={"train_size": [8, 16]}, **changes)


def test_a_choice_redraws_and_the_button_trains(study, backbone, tmp_path, monkeypatch):
    one = study(backbone)
    compare(one, tmp_path / "results" / "little-paraphrase", progress=False)
    (tmp_path / "little-paraphrase.yaml").write_text(to_yaml(one))
    folder, = stored_studies(tmp_path / "results", "paraphrase")
    drawn, begun = [], []
    explorer = Explorer(drawn.append, [folder], tmp_path)
    assert [box.description for box in explorer.choices.children] == ["recipes", "tunings", "examples"]
    assert len(drawn) == 1 and drawn[0].results["run"].nunique() == 9
    explorer.sizes.value, explorer.tunings.value = [8], ["lora"]
    assert len(drawn) == 3 and set(drawn[-1].results["train_size"]) == {0, 8}
    assert set(drawn[0].variants.values()) == {"", "train_size 8", "train_size 16"} and drawn[-1].variants == {}
    assert set(drawn[-1].examples["tuning"]) == {"-", "lora"} and set(drawn[-1].pairs["recipe"]) == {"dpo"}
    assert set(drawn[-1].history["run"]) == set(drawn[-1].runs) - {name for name in drawn[-1].runs if "-base-" in name}
    monkeypatch.setattr(explore, "begin_study", lambda study, folder: begun.append((study, folder)))
    button, said = explorer.run.children
    words = shlex.split(re.search("<pre.*?>(.*)</pre>", said.value)[1])
    assert words[words.index("--tunings"):] == ["--tunings", "lora", "--sweep", "train_size", "8", "--out", "runs/little-paraphrase"]
    button.click()
    chosen = one.replace(tunings=("lora",), sweep={"train_size": [8]})
    assert [(found, str(place)) for found, place in begun] == [(chosen, "runs/little-paraphrase")] and "runs/little-paraphrase" in said.value
    assert parse(words[1:]).study == chosen, "the command asks for the same"


def test_without_a_study_there_is_a_remedy(tmp_path):
    with pytest.raises(ValueError, match="sftdpo compare"): Explorer(print, stored_studies(tmp_path))


def test_a_view_without_search(study, backbone, tmp_path):
    compare(study(backbone, search=Search()), tmp_path / "one", progress=False)
    assert view_of(tmp_path / "one", sizes=[16]).search.empty


def test_another_study_of_the_same_name_is_not_trained(study, backbone, tmp_path):
    "At 3c08ef9 the button trained what lay under the study's name, whether or not it was the study that is shown, and whether or not its data were there."
    one = study(backbone)
    compare(one, tmp_path / "results" / "little-paraphrase", progress=False)
    folder, = stored_studies(tmp_path / "results", "paraphrase")
    def button(text):
        (tmp_path / "little-paraphrase.yaml").write_text(text)
        return Explorer(lambda view: None, [folder], tmp_path).run.children
    press, said = button(to_yaml(one))
    assert not press.disabled and "--recipes" not in said.value and "--sweep" not in said.value, "all is chosen"
    assert button(to_yaml(one.replace(name="another"))) == ()
    press, said = button(to_yaml(one.replace(data="no/where")))
    assert press.disabled and "no/where, are not here" in said.value
