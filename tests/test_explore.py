"The form over a stored study."
import pytest
from little import compare, small

import sftdpo.page.explore as explore
from sftdpo.config import Search, to_yaml
from sftdpo.page.explore import Explorer, stored_studies, view_of


@pytest.fixture(scope="module")
def study():
    return lambda backbone, **changes: small(backbone, tasks=("paraphrase",), recipes=("sft", "dpo"), sweep={"train_size": [8, 16]}, **changes)


def test_a_choice_redraws_and_the_button_trains(study, backbone, tmp_path, monkeypatch):
    one = study(backbone)
    compare(one, tmp_path / "results" / "little-paraphrase", progress=False)
    (settings := tmp_path / "little.yaml").write_text(to_yaml(one))
    folder, = stored_studies(tmp_path / "results", "paraphrase")
    drawn, begun = [], []
    explorer = Explorer(drawn.append, [folder], settings)
    assert [box.description for box in explorer.choices.children] == ["recipes", "tunings", "examples"]
    assert len(drawn) == 1 and drawn[0].results["run"].nunique() == 9
    explorer.sizes.value, explorer.tunings.value = [8], ["lora"]
    assert len(drawn) == 3 and set(drawn[-1].results["train_size"]) == {0, 8}
    assert set(drawn[0].variants.values()) == {"", "train_size 8", "train_size 16"} and drawn[-1].variants == {}
    assert set(drawn[-1].examples["tuning"]) == {"-", "lora"} and set(drawn[-1].pairs["recipe"]) == {"dpo"}
    assert set(drawn[-1].history["run"]) == set(drawn[-1].runs) - {name for name in drawn[-1].runs if "-base-" in name}
    monkeypatch.setattr(explore, "begin_study", lambda study, folder: begun.append((study, folder)))
    button, said = explorer.children[-2:]
    assert "sftdpo compare --settings" in said.value
    button.click()
    assert [(found, str(place)) for found, place in begun] == [(one, "runs/little")] and "runs/little" in said.value


def test_without_a_study_there_is_a_remedy(tmp_path):
    with pytest.raises(ValueError, match="sftdpo compare"): Explorer(print, stored_studies(tmp_path))


def test_a_view_without_search(study, backbone, tmp_path):
    compare(study(backbone, search=Search()), tmp_path / "one", progress=False)
    assert view_of(tmp_path / "one", sizes=[16]).search.empty
