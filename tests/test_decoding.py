"How texts were drawn stands with every table and report of them, and a submission is drawn as judging draws."
import io
from contextlib import redirect_stdout
from pathlib import Path

import pandas as pd
import pytest
from little import compare, small

from sftdpo.cli import main
from sftdpo.config import Sampling, decoding
from sftdpo.engine.export import submit_sonnets
from sftdpo.engine.folder import StudyFolder
from sftdpo.engine.store import read_results
from sftdpo.model import load_backbone
from sftdpo.report import write_report
from sftdpo.tables import decoding_of, print_tables
from sftdpo.tasks import TASKS

SAID = "2 samples a prompt, temperature 0.8, top-p 0.95, at most 8 tokens; the end of text is refused until line 14 has begun"


@pytest.fixture(scope="module")
def study(tmp_path_factory, tokenizer):
    "A finished study on sonnets, with the models kept."
    from tiny import tiny_model

    from sftdpo.model import save_policy
    home = tmp_path_factory.mktemp("texts")
    backbone = str(save_policy(tiny_model("gpt2", tokenizer), tokenizer, home / "backbone"))
    compare(small(backbone, tasks=("sonnet",), recipes=("sft",), tunings=("full",), weights="all"), home / "study", progress=False)
    return home / "study"


def printed(function, *rest):
    shown = io.StringIO()
    with redirect_stdout(shown): function(*rest)
    return " ".join(shown.getvalue().split())


@pytest.mark.usefixtures("undrawn")
def test_tables_and_reports_say_it(study):
    results = read_results(study)
    assert f"texts: {SAID}" in printed(print_tables, results, study)
    assert SAID in write_report(study).read_text(encoding="utf-8")
    assert any(SAID in card.read_text() for card in Path(study).glob("runs/*/policy/README.md"))


def test_results_of_earlier_versions_are_not_said_to_be_drawn_so(study):
    results = read_results(study)
    earlier = results[results.metric != "full_length"]
    assert "a text ended where the policy ended it" in decoding_of(study, earlier)
    assert "longer texts have a higher chrF" in printed(print_tables, earlier, study)


def test_a_swept_way_of_drawing_is_told(backbone, tmp_path):
    compare(small(backbone, tasks=("sonnet",), recipes=("sft",), tunings=("full",), sweep={"sampling.temperature": [0.5, 1.0]}), tmp_path / "study", progress=False)
    assert decoding_of(tmp_path / "study", read_results(tmp_path / "study")).endswith("Swept: sampling.temperature 0.5, 1.")


def test_every_text_task_has_a_sentence():
    for task in TASKS.values(): assert bool(decoding(task.name, Sampling())) == (task.answers == "text") == bool(task.decoding), task.name


def test_the_command_line_says_it(backbone, tmp_path, capsys):
    (tmp_path / "rows.csv").write_text("prompt,completion\n" + "".join(f"say {i},it is {i}\n" for i in range(12)))
    main(["evaluate", backbone, "--task", "completions", "--data", str(tmp_path / "rows.csv"), "--test-size", "2", "--sampling.samples", "1", "--sampling.max-new-tokens", "5"])
    assert "texts: 1 sample a prompt, temperature 0.8, top-p 0.95, at most 5 tokens; a text ends where the policy ends it." in capsys.readouterr().out


def test_a_submitted_sonnet_does_not_end_early(tmp_path):
    "A policy that would end at once writes fourteen lines all the same, as for judging."
    model, tokenizer = load_backbone("bard")
    def eager(module, inputs, output):
        output.logits[..., tokenizer.eos_token_id] += 100
        return output
    model.register_forward_hook(eager)
    (tmp_path / "prompts.txt").write_text("\n1\n\nShall I compare thee to a summer's day?\nThou art more lovely and more temperate:\nRough winds do shake the darling buds of May,\n")
    written = submit_sonnets(model, tokenizer, tmp_path / "prompts.txt", tmp_path / "out.txt", Sampling(samples=1, max_new_tokens=400))
    lines = [line for line in written.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) == 2 + 14, "the heading, the number, and the sonnet"


def test_a_policy_that_ends_early_is_judged_at_full_length(tokenizer, tmp_path):
    "How it ends is told from texts of its own. At 72cf482 the judged text was cut where the policy ended it, and chrF measured its length."
    from tiny import tiny_of

    from sftdpo.model import save_policy
    found, tables = [], []
    for name, moved in (("plain", -8.0), ("eager", 8.0)):
        model = tiny_of("gpt2", max_position_embeddings=1024)
        end = model.transformer.wte.weight[tokenizer.eos_token_id].detach()
        model.transformer.ln_f.bias.data += moved * end / end.square().sum()  # moves the logit of the end of text by so much, the others a little
        save_policy(model, tokenizer, tmp_path / name)
        main(["evaluate", str(tmp_path / name), "--task", "sonnet", "--test-size", "4", "--sampling.samples", "2", "--sampling.max-new-tokens", "60", "--out", str(tmp_path / f"{name}.csv")])
        tables.append(pd.read_csv(tmp_path / f"{name}.csv"))
        found.append(tables[-1][["length_ratio", "ended"]].mean())
    plain, eager = (table.generated.fillna("").str.len().mean() for table in tables)
    assert eager > 0.7 * plain and found[1].ended > 0.9 and found[1].length_ratio < 0.5 * found[0].length_ratio


def test_the_folder_of_a_study_that_draws_nothing_says_nothing(backbone, tmp_path):
    compare(small(backbone, tasks=("paraphrase",), recipes=("sft",), tunings=("full",)), tmp_path / "study", progress=False)
    results = read_results(tmp_path / "study")
    assert decoding_of(tmp_path / "study", results) == "" and StudyFolder(tmp_path / "study").begun
