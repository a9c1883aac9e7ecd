"""examples/study/report.py: intervals, against resamples written out, and the page."""

import doctest
from pathlib import Path

import numpy as np
import pytest
import quickstart
from scipy import stats
from sklearn.metrics import f1_score, matthews_corrcoef
from study import bootstrap, cells, characters, findings, ingredients, plots, report, run, tables, wording

from modeling_romebert import RomeBertTrainer, RomeBertTrainingArguments
from modeling_romebert.evaluation.provenance import write_json

# ---- intervals


def a_result(seed, predictions, labels, metric="accuracy", **more) -> dict:
    """A result of given predictions, a string for each exit."""
    scores = {
        "accuracy": lambda y, p: np.mean(np.array(list(y)) == np.array(list(p))),
        "f1": f1,
        "matthews_correlation": matthews,
    }
    exits = {str(layer): float(scores[metric](labels, one)) for layer, one in enumerate(predictions, start=1)}
    return {
        "task": "t",
        "backbone": "b",
        "recipe": "r",
        "seed": seed,
        "metric": metric,
        "exits": exits,
        "mean_over_exits": float(np.mean(list(exits.values()))),
        "num_layers": len(predictions),
        "predictions": {str(layer): one for layer, one in enumerate(predictions, start=1)},
        "labels": labels,
        "curve": [{"threshold": 0.5, "cost": 0.6, "metric": 0.9}],
        "policy": "entropy",
        "policies": {"patience": [{"threshold": 2, "cost": 0.75, "metric": 0.8}]},
        "area": 0.8,
        "arguments": {"objective": "joint", "num_train_epochs": 2},
        "training_seconds": 60.0,
        "training_cpu_seconds": 30.0,
        "device": "cpu",
        "projected": None,
        "gradient_cosine": None,
        "rows": {"train": 10, "evaluation": len(labels)},
        "machine": {"processor": "x86_64", "instructions": "AVX2", "threads": 1, "accelerator": None},
        "versions": {"torch": "2", "transformers": "5"},
        "settings": {"training": {"bf16": False, "fp16": False}},
        **more,
    }


def f1(labels, predicted):
    return f1_score([int(one) for one in labels], [int(one) for one in predicted])


def matthews(labels, predicted):
    return matthews_corrcoef([int(one) for one in labels], [int(one) for one in predicted])


def resampled(run, weights):
    return bootstrap.of_answers(run["metric"], run["labels"], [*run["predictions"].values()], weights)


def test_correlations_of_resamples_are_those_of_the_repeated_rows():
    generator = np.random.default_rng(0)
    labels = generator.normal(2.5, 1.0, 60)
    predicted = np.stack([labels + generator.normal(0, noise, 60) for noise in (2.0, 0.3, 0.0)])  # (E, N)
    one = {
        "metric": "pearson",
        "predictions": {
            str(layer): characters.of_numbers(row) for layer, row in enumerate(predicted, start=9)
        },
        "labels": characters.of_numbers(labels),
        "rows": {"evaluation": 60},
    }
    weights = generator.multinomial(60, np.full(60, 1 / 60), size=5)
    for counts, values in zip(weights, resampled(one, weights.astype(float)), strict=True):
        rows = np.repeat(np.arange(60), counts)
        expected = [np.corrcoef(row[rows], labels[rows])[0, 1] for row in predicted]
        assert values == pytest.approx(expected, abs=1e-3)
    one["predictions"] = {"1": characters.of_numbers(np.full(60, 7.0))}
    assert resampled(one, weights.astype(float)).tolist() == [[0.0]] * 5


def random_words(rows, seed, share=0.7, labels=None):
    generator = np.random.default_rng(seed)
    if labels is None:
        return "".join(map(str, generator.integers(2, size=rows)))
    return "".join(one if generator.random() < share else str(1 - int(one)) for one in labels)


@pytest.mark.parametrize("metric", ["accuracy", "f1", "matthews_correlation"])
def test_metrics_of_resamples_are_those_of_the_repeated_rows(metric):
    labels = random_words(40, 0)
    one = a_result(1, [random_words(40, 1, 0.6, labels), random_words(40, 2, 0.9, labels)], labels, metric)
    weights = np.random.default_rng(3).multinomial(40, np.full(40, 1 / 40), size=5).astype(float)
    found = resampled(one, weights)
    for counts, values in zip(weights, found, strict=True):
        rows = np.repeat(np.arange(40), counts.astype(int))
        repeated = [
            ["".join(text[row] for row in rows) for text in one["predictions"].values()],
            "".join(labels[row] for row in rows),
        ]
        assert values.tolist() == pytest.approx(list(a_result(1, *repeated, metric)["exits"].values()))
    assert resampled(one, np.ones((1, 40)))[0].tolist() == pytest.approx(list(one["exits"].values()))


def test_an_interval_holds_0_where_there_is_no_difference_and_excludes_it_where_there_is():
    labels = random_words(200, 0)
    weak = [a_result(seed, [random_words(200, seed, 0.7, labels)] * 2, labels) for seed in (1, 2, 3)]
    strong = [a_result(seed, [random_words(200, seed + 9, 0.95, labels)] * 2, labels) for seed in (1, 2, 3)]
    mean = findings.mean_over_exits
    same = bootstrap.paired([(weak, weak)], mean)
    assert (same.difference, same.low, same.high) == (0.0, 0.0, 0.0) and not same.excludes_zero
    found = bootstrap.paired([(strong, weak)], mean)
    assert 0.15 < found.low < found.difference < found.high < 0.35 and found.seeds == 3
    backwards = bootstrap.paired([(weak, strong)], mean)
    assert backwards.difference == -found.difference and backwards.high < 0
    # about that of a share's standard error
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 * 0.75 / 200), rel=0.6)
    # of the same on other rows, the difference is the same and its interval narrower by the root of two
    both = bootstrap.paired([(strong, weak), (with_other_labels(strong), with_other_labels(weak))], mean)
    assert both.difference == pytest.approx(found.difference)
    assert both.high - both.low == pytest.approx((found.high - found.low) / 2**0.5, rel=0.1)
    # on the same rows, which one seed alone draws, a second time tells nothing new
    once = bootstrap.paired([(strong[:1], weak[:1])], mean)
    assert bootstrap.paired([(strong[:1], weak[:1])] * 2, mean) == pytest.approx(once)
    with pytest.raises(ValueError, match="the same seeds"):
        bootstrap.paired([(weak[:2], strong[1:])], mean)
    others = [{**run, "digests": {"evaluation": "b"}} for run in strong]
    with pytest.raises(ValueError, match="runs of t, b are judged on other rows: r and r"):
        bootstrap.paired([([{**run, "digests": {"evaluation": "a"}} for run in weak], others)], mean)


@pytest.mark.parametrize("tasks", [1, 4])
def test_student_s_intervals_of_three_seeds_hold_what_they_say(tasks):
    chance = [np.random.default_rng(number).normal(size=(tasks, 3)).tolist() for number in range(1000)]
    assert sum(bootstrap.over_seeds(one).excludes_zero for one in chance) / 1000 < 0.065


def test_intervals_of_three_seeds_and_rows_are_not_far_too_narrow():
    """Of recipes that differ by chance alone, where some seeds train much better than others."""

    def runs(labels, *stream):
        made = (np.random.default_rng([*stream, seed]) for seed in (1, 2, 3))
        answers = [random_words(200, one, min(1, 0.8 + 0.08 * one.normal()), labels) for one in made]
        return [a_result(seed, [one], labels) for seed, one in enumerate(answers)]

    labels, found = random_words(200, 0), 0
    for number in range(200):
        pairs = [(runs(labels, number, 0), runs(labels, number, 1))]
        found += bootstrap.paired(pairs, findings.last_of).excludes_zero
    assert found / 200 < 0.11


def with_other_labels(runs):
    """The same answers, right and wrong, to other rows."""
    swap = str.maketrans("01", "10")
    return [
        {
            **run,
            "labels": run["labels"].translate(swap),
            "predictions": {layer: one.translate(swap) for layer, one in run["predictions"].items()},
        }
        for run in runs
    ]


def test_without_predictions_the_interval_is_student_s_over_seeds():
    bare = [{"seed": seed, "metric": "pearson", "exits": {"1": 0.5 + seed / 10}} for seed in (1, 2, 3)]
    other = [{**one, "exits": {"1": 0.5}} for one in bare]
    found = bootstrap.paired([(bare, other)], findings.last_of)
    expected = stats.ttest_1samp([0.1, 0.2, 0.3], 0).confidence_interval(0.95)
    assert (found.low, found.difference, found.high) == pytest.approx((expected.low, 0.2, expected.high))
    assert bootstrap.over_seeds([[0.1, 0.2, 0.3]]) == pytest.approx(found)
    ones, others = [0.1, 0.2, 0.4], [0.3, 0.35, 0.2, 0.3]
    both = bootstrap.over_seeds([ones, others])
    expected = stats.ttest_ind(ones, [-one for one in others], equal_var=False).confidence_interval(0.95)
    assert (both.low, both.high) == pytest.approx((expected.low / 2, expected.high / 2))
    assert bootstrap.over_seeds([[0.1, 0.1]])[:3] == (0.1, 0.1, 0.1)
    for alone in (
        bootstrap.over_seeds([[0.1]]),
        bootstrap.paired([(bare[:1], other[:1])], findings.last_of),
    ):
        assert alone.difference == pytest.approx(0.1) and not alone.excludes_zero
        assert wording.interval(alone) == "+10.0"


# ---- figures and the page


def test_the_metric_at_a_cost_lies_between_the_points_of_the_curve():
    one = a_result(
        1, ["0000", "0101"], "0101"
    )  # exits at cost 0.5 and 1 score 0.5 and 1.0, the curve 0.9 at 0.6
    assert findings.at_cost(one, 0.55) == pytest.approx(0.7)
    assert findings.at_cost(one, 0.8) == pytest.approx(0.95)
    assert findings.at_cost(one, 0.5, "entropy") == 0.5
    assert findings.at_cost(one, 0.625, "patience") == pytest.approx(0.65)
    assert findings.one_layer(one, 0.55) == pytest.approx(0.55)


def write_results(folder, **recipes):
    for recipe, runs in recipes.items():
        for one in runs:
            write_json(Path(folder, "t", "b", recipe, f"{one['seed']}.json"), {**one, "recipe": recipe})


@pytest.fixture
def results(tmp_path):
    """Of three recipes with three, three and two seeds."""
    labels = random_words(200, 0)

    def runs(share, seeds, **arguments):
        arguments = {"objective": "joint", "num_train_epochs": 2, **arguments}
        return [
            a_result(
                seed,
                [random_words(200, 10 * seed + exit, share, labels) for exit in range(4)],
                labels,
                arguments=arguments,
            )
            for seed in seeds
        ]

    folder = tmp_path / "results"
    for recipe, of_recipe in {
        "joint": runs(0.9, (1, 2, 3)),
        "kl-0.3": runs(0.95, (1, 2)),
        "deebert": runs(0.7, (1, 2, 3), objective="deebert", epochs_factor=0.5),
        "kl-1-double": runs(0.99, (1, 2, 3), epochs_factor=2.0),
    }.items():
        write_results(folder, **{recipe: of_recipe})
    return folder


def test_the_best_of_one_stage_has_the_most_seeds_and_no_more_epochs(results):
    recipes = findings.load(results)["t", "b"]
    assert findings.best_one_stage(recipes) == "joint"
    found = findings.difference(recipes, "kl-0.3", "deebert", findings.mean_over_exits)
    assert found.seeds == 2 and found.low > 0.1
    assert findings.difference(recipes, "joint", "no-exits", findings.mean_over_exits) is None


def test_at_half_the_cost_recipes_are_judged_by_half_the_layers(results):
    joint = findings.load(results)["t", "b"]["joint"]

    def halves(*scores):
        return [{**run, "exits": {"2": score}} for run, score in zip(joint, scores, strict=False)]

    ahead = [findings.at_cost(run, 0.5) - 0.5 for run in joint]
    tasks = [{"joint": joint, "half-depth": halves(0.5, 0.5, 0.5)}]
    found = findings.at_half_the_cost(tasks, "joint")
    assert found.difference == pytest.approx(np.mean(ahead))
    assert found == pytest.approx(bootstrap.over_seeds([ahead]))
    tasks.append({"joint": joint, "half-depth": halves(0.3, 0.3)})
    assert findings.at_half_the_cost(tasks, "joint").difference == pytest.approx(
        np.mean([np.mean(ahead), np.mean(ahead[:2]) + 0.2])
    )
    assert findings.at_half_the_cost([*tasks, {"joint": joint}], "joint") is None
    bare = [{**run, "curve": []} for run in joint]
    assert findings.at_half_the_cost([{**tasks[0], "joint": bare}], "joint") is None


def test_a_recipe_of_one_s_own_may_leave_things_out(results):
    """Its objective is then the package's, and numbers of the command line may be text."""
    recipes = findings.load(results)["t", "b"]
    recipes["mine"] = [{**run, "arguments": {"num_train_epochs": "1e1"}} for run in recipes["joint"]]
    assert RomeBertTrainingArguments.objective == findings.objective_of(recipes["mine"][0])
    assert findings.epochs_of(recipes["mine"][0]) == 10.0
    assert "| `mine` | 3 |" in tables.table(recipes) and findings.best_one_stage(recipes) in ("joint", "mine")


def test_nothing_of_the_grid_is_in_the_page_of_a_study_of_one_s_own(results):
    told = report.page(findings.load(results), cells.read_grid(), {"t b joint 4": "no seed 4"}, {})
    assert told.endswith("The tasks are one's own, and in no grid.\n\n- failed: t b joint 4: no seed 4\n")
    assert "grid.yaml" not in told and "the paper's curves" not in told


def test_means_over_tasks_are_of_what_every_task_has(results, tmp_path):
    recipes = findings.load(results)["t", "b"]
    ceiling = [{**one, "exits": {"4": 0.9}, "mean_over_exits": 0.9} for one in recipes["joint"]]
    one_task = {**recipes, "no-exits": ceiling, "deebert-heads": recipes["deebert"]}
    one_task[findings.DEFAULT] = recipes["joint"]
    other_task = {name: runs for name, runs in one_task.items() if name != "kl-0.3"}
    told = tables.over_all_tasks({("t", "b"): one_task, ("u", "b"): other_task})
    gain = findings.difference(recipes, "joint", "deebert", findings.mean_over_exits).difference
    assert f"| `joint` | 3 | **{100 * gain:+.1f}** [" in told and "Means over 2 pairs" in told
    assert "| `kl-0.3`" not in told and "| `no-exits`" not in told
    short = report.over_tasks({("t", "b"): one_task, ("u", "b"): other_task})
    assert f"`{findings.DEFAULT}` against DeeBERT: {100 * gain:.1f} points ahead [" in short
    assert short.endswith("].") and "faster heads in DeeBERT itself: no difference shown, +0.0 [" in short
    first_token = {
        name: [{**run, "arguments": run["arguments"] | {"exit_pooling": "cls"}} for run in runs]
        for name, runs in one_task.items()
    }
    of_three = {("t", "b"): one_task, ("u", "b"): other_task, ("v", "b"): first_token}
    assert "On the 2 whose exits read the mean of all tokens, and not the first one, at half the cost" in (
        report.over_tasks(of_three)
    )
    plots.plot_in_short({("t", "b"): one_task, ("u", "b"): other_task}, tmp_path / "short.png")
    assert (tmp_path / "short.png").stat().st_size > 10_000
    once = {name: runs[:1] for name, runs in other_task.items()}
    assert tables.over_all_tasks({("t", "b"): one_task, ("u", "b"): once}).startswith("Nothing yet")


def test_the_default_is_compared_with_what_there_is_besides(results):
    recipes = findings.load(results)["t", "b"]
    recipes[findings.DEFAULT] = recipes.pop("kl-0.3")
    *_, row, best = ingredients.defaults({("t", "b"): recipes | {"paper": recipes["deebert"]}}).splitlines()
    ahead = findings.difference(recipes, findings.DEFAULT, "deebert", findings.mean_over_exits)
    assert row.startswith(f"| t | b | `paper` | 2 | {wording.interval(ahead)} | ")
    assert best.startswith("| t | b | `joint` | 2 | ")
    both = {(task, "b"): recipes | {"paper": recipes["deebert"]} for task in "tu"}
    of_both = next(
        line for line in ingredients.defaults(both).splitlines() if line.startswith("| mean of 2 |")
    )
    ahead = findings.difference_over(list(both.values()), findings.DEFAULT, "paper", findings.last_of)
    assert of_both.startswith("| mean of 2 |  | `paper` | 2 | ") and of_both.endswith(
        f" | {wording.interval(ahead)} |"
    )


def test_the_package_starts_from_the_recipe_that_the_page_says(tmp_path):
    start = vars(RomeBertTrainingArguments(str(tmp_path), report_to="none"))
    assert start["exit_learning_rate_factor"] is None  # the trainer's own
    start |= {"exit_learning_rate_factor": RomeBertTrainer.default_head_rate}
    content = cells.recipe_content(findings.DEFAULT)
    assert {name: start[name] for name in content} == content
    assert {name: getattr(quickstart.QuickstartArguments(), name, start[name]) for name in content} == content


def test_heads_at_another_rate_are_compared_with_the_same_recipe_without(results):
    recipes = findings.load(results)["t", "b"]
    recipes["joint-heads"] = recipes["kl-1-double"]
    told = ingredients.head_rates({("t", "b"): recipes}).splitlines()
    gain = findings.difference(recipes, "kl-1-double", "joint", findings.last_of)
    assert len(told) == 3 and told[-1].startswith("| t | b | `joint-heads` | **+")
    assert told[-1].endswith(f" | {wording.interval(gain)} |")


def test_poolings_are_compared_on_tasks_that_differ_in_nothing_else(results):
    recipes = findings.load(results)["t", "b"]

    def reading(runs, **arguments):
        return [{**run, "arguments": run["arguments"] | arguments} for run in runs]

    mean, first = recipes["joint"], recipes["kl-1-double"]
    groups = {("t", "b"): {"joint": reading(mean, exit_pooling="mean")}}
    like = mean[0]["arguments"] | {"exit_pooling": "cls"}
    groups["t-cls", "b"] = {"joint": [{**run, "arguments": like} for run in first]}
    cost = findings.difference(recipes, "kl-1-double", "joint", findings.mean_over_exits)
    (row,) = ingredients.poolings(groups).splitlines()[2:]
    assert row.startswith(f"| t-cls | t | b | `joint` | {wording.interval(cost)} |")
    groups["t-cls", "b"]["joint"] = reading(first, exit_pooling="cls", learning_rate=1.0)
    assert ingredients.poolings(groups) == "Nothing yet: no two tasks differ in exit_pooling alone."


def test_the_projection_is_told_beside_what_chance_gives(results):
    recipes = findings.load(results)["t", "b"]
    recipes["joint-protect-last"] = [{**run, "projected": 0.25} for run in recipes["joint"]]
    recipes["joint-protect-exits"] = [{**run, "projected": 0.35} for run in recipes["deebert"]]
    told = ingredients.projection({("t", "b"): recipes})
    assert "conflict in 30% of the steps, and training with the projection takes 1.0 times as long" in told
    assert "Of 4 intervals 0 lie above 0 and 2 below it, where chance alone gives 0.2; more where" in told
    assert "| t | b | `joint-protect-last` | 25% |  | +0.0 [+0.0, +0.0] | +0.0 [+0.0, +0.0] |" in told


def test_two_stages_of_equal_time_are_told_apart(results):
    recipes = findings.load(results)["t", "b"]
    assert ingredients.equal_time({("t", "b"): recipes}).startswith("Nothing yet")
    renamed = {findings.DEFAULT: recipes["kl-0.3"], "deebert-equal-time": recipes["deebert"]}
    told = ingredients.equal_time({("t", "b"): renamed}).splitlines()
    gain = findings.difference(recipes, "kl-0.3", "deebert", findings.mean_over_exits)
    assert told[-1].startswith(f"| t | b | `deebert-equal-time` | 2 | 0.5 | 0.5 | {wording.interval(gain)} |")


def write_pilots(folder, rate, seed=100, **shares) -> None:
    """Runs of no exits and of two stages that answer so large a share right."""
    labels = random_words(1000, 0)
    for recipe, share in shares.items():
        one = a_result(seed, [random_words(1000, exit, share, labels) for exit in range(3)], labels)
        name = recipe.replace("_", "-")
        write_json(folder / f"pilots/{rate}/t/b/{name}/{seed}.json", {**one, "recipe": name})


def test_pilots_tell_each_rate_and_the_one_that_was_chosen(results):
    grid = {"tasks": {"t": {"arguments": {"learning_rate": 1e-4}}}}
    write_pilots(results.parent, "1e-4", no_exits=0.9, deebert=0.9)
    write_pilots(results.parent, "5e-5", no_exits=0.7, deebert=0.7)
    write_json(results.parent / "pilots/failed/t/b/joint/100.json", {"reason": "killed"})
    pilots = findings.load_pilots(results)
    assert list(pilots) == ["5e-5", "1e-4"]
    told = tables.learning_rates(pilots, {}, grid).splitlines()
    assert told[-2].startswith("| t | b | 5e-5 | 1 | fp32 | ")
    assert told[-1].startswith("| t | b | **1e-4** | 1 | fp32 | ")
    assert "would take" not in told[0]


def test_a_rate_that_pilots_found_better_than_the_grids_is_said(results):
    grid = {"tasks": {"t": {"arguments": {"learning_rate": 1e-4}}}}
    write_pilots(results.parent, "5e-5", no_exits=0.9, deebert=0.7)
    write_pilots(results.parent, "2e-4", no_exits=0.901, deebert=0.8)
    for seed in (1, 2):  # no pilot took the grid's own rate
        write_pilots(results.parent / "of-the-study", "1e-4", seed, no_exits=0.8, deebert=0.85)
    study = findings.load(results.parent / "of-the-study/pilots/1e-4")
    pilots = findings.load_pilots(results)
    rates = findings.at_rates(pilots, study, grid)["t", "b"]
    assert list(rates) == [5e-5, 1e-4, 2e-4] and findings.rate_by_rule(rates) == 2e-4
    told = tables.learning_rates(pilots, study, grid)
    assert told.splitlines()[5].startswith("| t | b | **1e-4** | 2 | ")
    assert "t would take 2e-4 by this rule, which was found after its runs." in told


def test_runs_of_another_precision_than_the_others_are_named(results):
    (recipes,) = findings.load(results).values()
    assert "otherwise" not in tables.how_made(recipes)
    recipes["joint"][1]["settings"] = {"training": {"bf16": True, "fp16": False}}
    told = tables.how_made(recipes)
    assert told.startswith(
        "fp32, x86_64 AVX2 CPU, 1 thread, torch 2, transformers 5. Made otherwise: `joint` seed "
    )
    assert told.endswith("; bf16, x86_64 AVX2 CPU, 1 thread, torch 2, transformers 5.")


def test_what_was_cut_is_told_with_its_distance_to_the_best(results):
    groups = findings.load(results)
    recipes = groups["t", "b"]
    recipes["kl-0.3"] = recipes["kl-0.3"][:1]
    told = ingredients.cut(groups, {"tasks": {"t": {"cut": ["kl-0.3", "never-run"]}}}).splitlines()
    behind = findings.difference(recipes, "kl-0.3", "joint", findings.last_of)
    assert behind.seeds == 1
    assert told[-1].startswith("| t | b | `kl-0.3` | `joint` | ")
    assert told[-1].endswith(f" | {wording.interval(behind)} |")
    assert ingredients.cut(groups, {"tasks": {}}).startswith("Nothing")


def test_the_page_tells_what_is_there_and_what_is_not(results, tmp_path):
    of_task = {"backbones": ["b", "c"], "seeds": [1, 2, 3], "arguments": {}}
    grid = {"common": {}, "backbones": {"b": "x", "c": "y"}, "recipes": ["joint", "kl-0.3"]}
    grid["tasks"] = {"t": of_task, "whole": {**of_task, "large": True}}
    write_json(tmp_path / "grid.json", grid)  # which is YAML too
    for recipe in ("paper", "joint"):
        write_json(
            tmp_path / f"failed/results/t/b/{recipe}/1.json", {"reason": "first\nloss is nan at step 7"}
        )
    report.main(
        [
            "--results",
            str(results),
            "--page",
            str(tmp_path / "study.md"),
            "--grid",
            str(tmp_path / "grid.json"),
        ]
    )
    page = (tmp_path / "study.md").read_text()
    recipes = findings.load(results)["t", "b"]
    gain = findings.difference(recipes, "joint", "deebert", findings.mean_over_exits)
    assert gain.low > 0.1 and f"| t | b | accuracy | `joint` | 3 | {wording.interval(gain)} |" in page
    assert "7 runs of the grid have no result yet." in page
    assert "- t, b: seeds 3 of `kl-0.3`" in page and "- t, c: all" in page
    assert "- for a GPU, run only when `--tasks` names them: whole" in page
    assert "joint 1: " not in page  # it has a result by now
    assert "where they are not used. Nothing here compares them yet." in page
    assert "- failed: t b paper 1: loss is nan at step 7" in page
    assert (tmp_path / "results/study-t-b.png").stat().st_size > 10_000


@pytest.mark.parametrize("module", [wording, characters, run], ids=lambda module: module.__name__)
def test_examples_in_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0


def test_no_results_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="holds no results; examples/study"):
        report.main(["--results", str(tmp_path), "--page", str(tmp_path / "study.md")])


def test_the_page_is_of_the_results_that_are_there():
    """After new results: python examples/study/report.py"""
    groups = findings.load(cells.RESULTS)
    failed = findings.load_failed(cells.RESULTS)
    assert report.PAGE.read_text(encoding="utf-8") == report.page(
        groups, cells.read_grid(), failed, findings.load_pilots(cells.RESULTS)
    )
    for picture in (plots.IN_SHORT, *map(plots.plot_of, groups)):
        assert (report.PAGE.parent / picture).is_file()
