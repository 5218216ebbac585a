"""The declaration of a mixture: every contradiction is listed; a file says the same as the keys."""

import json

import pytest
from test_cli import PRINT_CONFIG, run

from configs import base
from configs.errors import UserError
from configs.mixture import Mixture, Phase, declared, problems, resolved, whole
from configs.validate import validate

TWO = (("data/web.parquet", 0.7), ("data/code/*.jsonl.gz", 0.3))


def data(**keys):
    config = base.get_config()
    config.data.update(keys)
    return config.data


def test_a_mixture_and_its_schedule():
    assert declared(data()) is None
    assert declared(data(mixture=TWO)) == Mixture(
        ("data/web.parquet", "data/code/*.jsonl.gz"), (7, 3), (Phase(0, (7, 3)),)
    )
    mixture = declared(data(mixture=TWO, mixture_schedule=((100, (0.5, 0.5)), (200, (0, 2.5)))))
    assert mixture.phases == (Phase(0, (7, 3)), Phase(100, (1, 1)), Phase(200, (0, 1)))
    mixture = declared(data(mixture=TWO, mixture_schedule=((0, (1, 0)),)))
    assert mixture.weights == (7, 3) and mixture.phases == (Phase(0, (1, 0)),)
    assert mixture.shares == [0.7, 0.3]


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ((0.1, 0.2, 0.7), (1, 2, 7)),
        ((1e-05, 1), (1, 100_000)),
        ((4, 6), (2, 3)),
        ((0.25, 0, 0.75), (1, 0, 3)),
        ((3.0,), (1,)),
    ],
)
def test_weights_count_as_they_are_written(weights, expected):
    assert whole(weights) == expected


def test_names_are_short_and_distinct():
    sources = ("a/web.parquet", "b/web.jsonl", "hf://datasets/x/code/*.parquet", "*/*", "a/web")
    mixture = declared(data(mixture=tuple((source, 1) for source in sources)))
    assert mixture.names == ["web", "web-2", "code", "source", "web-3"]


WRONG = {
    "source": ({"mixture": TWO, "source": "elsewhere"}, r"data.source = 'elsewhere' is not read"),
    "subset": ({"mixture": TWO, "max_train_tokens": 9}, "max_train_tokens = 9 is for a single"),
    "twice": ({"mixture": (*TWO, TWO[0])}, r"data/web.parquet 2 times"),
    "zero": ({"mixture": (("a", 0), ("b", 1))}, r"\[0, 1\] must be positive"),
    "negative": ({"mixture": (("a", -0.5), ("b", 1))}, "must be positive"),
    "not finite": ({"mixture": (("a", float("nan")), ("b", 1))}, "must be numbers"),
    "true": ({"mixture": (("a", True), ("b", 1))}, "must be numbers"),
    "too fine": ({"mixture": (("a", 0.123456789), ("b", 1))}, "too fine: .*1,123,456,789"),
    "no pairs": ({"mixture": ("a", "b")}, "must be pairs"),
    "no name": ({"mixture": (("", 1), ("b", 1))}, "must be pairs"),
    "many": ({"mixture": tuple((f"{i}", 1) for i in range(1025))}, "1,025 sources"),
    "schedule alone": ({"mixture_schedule": ((5, (1, 1)),)}, "needs the sources in data.mixture"),
    "no schedule": ({"mixture": TWO, "mixture_schedule": (5, 6)}, "pairs of a step and the weigh"),
    "not increasing": (
        {"mixture": TWO, "mixture_schedule": ((5, (1, 1)), (5, (1, 2)))},
        r"the steps \[5, 5\], which must be whole and increasing",
    ),
    "half a step": ({"mixture": TWO, "mixture_schedule": ((0.5, (1, 1)),)}, "must be whole"),
    "before 0": ({"mixture": TWO, "mixture_schedule": ((-1, (1, 1)),)}, "must be whole"),
    "length": (
        {"mixture": TWO, "mixture_schedule": ((5, (1, 1, 1)),)},
        "from step 5 has 3 weights for 2 sources",
    ),
    "all zero": ({"mixture": TWO, "mixture_schedule": ((5, (0, 0)),)}, "nor all 0"),
    "below zero": ({"mixture": TWO, "mixture_schedule": ((5, (-1, 1)),)}, "not be negative"),
    "fine step": ({"mixture": TWO, "mixture_schedule": ((5, (1 / 3, 1)),)}, "step 5: .*too fine"),
}


@pytest.mark.parametrize("name", WRONG)
def test_contradictions(name):
    keys, pattern = WRONG[name]
    with pytest.raises(UserError, match=f"(?s){pattern}"):
        declared(data(**keys))


def test_all_of_them_are_listed_at_once_with_those_of_other_keys():
    config = base.get_config()
    config.train.max_iters = 0
    config.data.update(
        {
            "source": "elsewhere",
            "mixture": (("a", 0), ("a", 1)),
            "mixture_schedule": ((9, (1,)), (3, (0, 0))),
        }
    )
    with pytest.raises(UserError, match="^the configuration has 7 problems"):
        validate(config, 1)
    assert len(problems(config.data)) == 6


CONTENT = {
    "sources": [{"source": source, "weight": weight} for source, weight in TWO],
    "schedule": [{"step": 100, "weights": [1, 1]}],
}


def test_a_file_says_the_same_as_the_keys(tmp_path):
    path = tmp_path / "mixture.json"
    path.write_text(json.dumps(CONTENT))
    config = base.get_config()
    config.data.mixture_file = str(path)
    expected = data(mixture=TWO, mixture_schedule=((100, (1, 1)),))
    assert declared(config.data) == declared(expected)
    assert resolved(config).data == expected
    assert config.data.mixture_file  # is as it was
    validate(config, 1)
    del CONTENT["schedule"]
    path.write_text(json.dumps(CONTENT))
    assert declared(config.data) == declared(data(mixture=TWO))
    config.data.mixture = TWO
    with pytest.raises(UserError, match="data.mixture and data.mixture_schedule must be empty"):
        validate(config, 1)


@pytest.mark.parametrize(
    ("content", "pattern"),
    [
        (None, "cannot be read"),
        ("[]", "it is .* and not an object"),
        ('{"sources": [{"source": "a"}]}', r"sources\[0\] lacks weight"),
        ('{"sources": [{"source": "a", "weight": "1"}]}', "weight is .* and not a number"),
        ('{"sources": []}', "names no source"),
        ('{"sources": [{"source": "a", "weight": 1}], "weights": 3}', "weights: it has the keys"),
        (
            '{"sources": [{"source": "a", "weight": 1}], "schedule": [{"step": 1.5}]}',
            r"schedule\[0\] lacks weights",
        ),
        ('{"sources": [{"source": "a", "weight": 0}]}', "must be positive"),
        (" " * (1 << 20) + "{}", "has 1,048,578 bytes"),
    ],
)
def test_a_file_is_checked(tmp_path, content, pattern):
    path = tmp_path / "mixture.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=pattern):
        declared(data(mixture_file=str(path)))


@pytest.mark.parametrize(
    "typed", ['--config.data.mixture=(("a",0.7),("b",2))', "data.mixture=(('a', 0.7), ('b', 2))"]
)
def test_on_the_command_line(typed):
    result = run("-c", PRINT_CONFIG, "--config=configs/debug.py", typed)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["data"]["mixture"] == [["a", 0.7], ["b", 2]]
