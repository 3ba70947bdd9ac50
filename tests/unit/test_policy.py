"""What a request may ask for, and how it is refused."""

from __future__ import annotations

import base64
import json
import math
import re
from dataclasses import fields
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from belljar_server.config import LimitSettings
from belljar_server.errors import InvalidRequest
from belljar_server.inputs import nesting
from belljar_server.messages import to_bad_request, to_status
from belljar_server.models import InputFile, Limits, SourceFile
from belljar_server.policy import Draft, judge

SETTINGS = LimitSettings()
RUNTIMES = ("python", "javascript")


def refusals(draft: Draft) -> dict[str, str]:
    """Field to description of all violations."""
    with pytest.raises(InvalidRequest) as refused:
        judge(draft, SETTINGS, RUNTIMES)
    return {violation.field: violation.description for violation in refused.value.violations}


def good(**fields: object) -> Draft:
    """A request that is right but for `fields`."""
    return Draft(**{"runtime": "python", "code": "1", **fields})  # type: ignore[arg-type]


def test_unset_limits_take_the_defaults() -> None:
    """What the client leaves open is the server's choice."""
    limits = judge(good(), SETTINGS, RUNTIMES).limits
    assert limits == SETTINGS.default.as_limits()


def test_cpu_time_follows_timeout_and_cores() -> None:
    """A longer run may use its cores all the time."""
    assert judge(good(limits={"timeout": 60.0, "cpus": 2.0}), SETTINGS, RUNTIMES).limits.cpu_time == 121.0


@pytest.mark.parametrize("name", list(Limits.__slots__))
@pytest.mark.parametrize("value", [-1, -0.5, math.nan, math.inf, -math.inf, 1 << 62])
def test_impossible_limit_is_refused_by_name(name: str, value: float) -> None:
    """Negative, NaN, infinite and absurd values are told with what is allowed."""
    description = refusals(good(limits={name: value}))[f"limits.{name}"]
    assert "allowed" in description


@pytest.mark.parametrize(
    "name", ["timeout", "cpu_time", "cpus", "memory_bytes", "processes", "disk_bytes", "open_files"]
)
def test_zero_is_refused_where_nothing_could_run(name: str) -> None:
    """No limit means anything else at zero."""
    assert f"limits.{name}" in refusals(good(limits={name: 0}))


def test_all_violations_are_told_at_once() -> None:
    """A client learns everything that is wrong from one answer."""
    found = refusals(Draft(runtime="cobol", code="", inputs_json="[]", limits={"cpus": -1}))
    assert set(found) == {"runtime", "code", "inputs_json", "limits.cpus"}
    assert "javascript, python" in found["runtime"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[]", "array"),
        ("1", "number"),
        ("null", "null"),
        ("true", "boolean"),
        ('"x"', "string"),
        ("{", "not JSON"),
        ('{"a": 1, "a": 2}', "twice"),
        ('{"a": {"b": 1, "b": 2}}', "twice"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "-Infinity"),
        ('{"a": ' + "[" * 300 + "]" * 300 + "}", "deeper"),
        ("[" * 100_000, "deeper"),
        ('{"a": ' + "1" * 5000 + "}", "digits"),
        ('{"a": "' + "x" * (16 << 20) + '"}', "at most"),
    ],
)
def test_wrong_inputs_are_refused_with_the_reason(text: str, says: str) -> None:
    """Every way in which inputs are no JSON object has its words."""
    assert says in refusals(good(inputs_json=text))["inputs_json"]


@pytest.mark.parametrize(
    "text", ['{"a": 12345678901234567890123}', '{"__proto__": 1, "constructor": 2}', '{"a": "\\ud800"}', '{"a":"[[[["}']
)
def test_unusual_inputs_are_accepted(text: str) -> None:
    """Big integers, hostile keys, lone surrogates and brackets in strings are all JSON."""
    assert judge(good(inputs_json=text), SETTINGS, RUNTIMES).inputs_json == text


BAD_PATHS = ["", "/a", "a//b", "./a", "a/..", "..", ".", "a/", "a\0b", "x" * 256, "é" * 128, "a/" * 600 + "b"]


@pytest.mark.parametrize("path", BAD_PATHS)
def test_bad_path_is_refused(path: str) -> None:
    """Paths that leave the folder, or that no file system takes."""
    assert "files[0].path" in refusals(good(files=(SourceFile(path, b""),)))
    assert "input_files[0].path" in refusals(good(input_files=(InputFile(path, b""),)))


@pytest.mark.parametrize("paths", [("a", "a"), ("a", "a/b"), ("a/b", "a")])
def test_paths_that_exclude_each_other_are_refused(paths: tuple[str, str]) -> None:
    """The same path twice, or a file where a folder is needed."""
    assert "files[1].path" in refusals(good(files=tuple(SourceFile(path, b"") for path in paths)))


@pytest.mark.parametrize("name", ["", "A=B", "1A", "A-B", "A\0", "BELLJAR_X", "belljar_x", "é"])
def test_bad_variable_name_is_refused(name: str) -> None:
    """Names that no shell takes, and those that are ours."""
    assert "env" in refusals(good(env=((name, "x"),)))


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PYTHONPATH", "PYTHONSTARTUP", "NODE_OPTIONS"])
def test_dangerous_variables_are_the_users_own_business(name: str) -> None:
    """They reach user code only, so nothing is wrong with them."""
    assert judge(good(env=((name, "x"),)), SETTINGS, RUNTIMES).env == ((name, "x"),)


def test_sizes_just_at_the_maximum_are_accepted_and_one_above_is_not() -> None:
    """The bound itself is allowed."""
    judge(good(code="#" * (4 << 20)), SETTINGS, RUNTIMES)
    assert "code" in refusals(good(code="#" * ((4 << 20) + 1)))
    judge(good(files=(SourceFile("a", b"x" * (4 << 20)),)), SETTINGS, RUNTIMES)
    assert "files[0].content" in refusals(good(files=(SourceFile("a", b"x" * ((4 << 20) + 1)),)))
    half = "x" * (128 * 1024 - 3)
    judge(good(env=(("A", half), ("B", half), ("C", "xxx"))), SETTINGS, RUNTIMES)
    assert "env" in refusals(good(env=(("A", half), ("B", half), ("C", "xxxx"))))
    assert "env['A']" in refusals(good(env=(("A", half + "x"),)))


def test_files_larger_than_the_disk_are_refused() -> None:
    """They could never be placed."""
    draft = good(input_files=(InputFile("a", b"x" * (2 << 20)),), limits={"disk_bytes": 1 << 20})
    assert "limits.disk_bytes" in refusals(draft)


@given(st.recursive(st.text(), lambda inner: st.lists(inner, max_size=3), max_leaves=30))
def test_nesting_counts_what_json_dumps_nests(value: object) -> None:
    """The depth is that of the value, whatever its strings hold."""

    def depth(item: object) -> int:
        return 1 + max((depth(child) for child in item), default=0) if isinstance(item, list) else 0

    deep = depth(value)
    assert nesting(json.dumps(value), deep) <= deep
    assert nesting(json.dumps(value), deep - 1) > deep - 1


@given(st.text(alphabet='"\\[]{}a', max_size=60))
def test_nesting_takes_any_text(text: str) -> None:
    """Broken JSON has some depth, too, and never takes long."""
    assert nesting(text, 0) <= len(text)


def test_answer_to_a_thousand_mistakes_still_fits_the_metadata_of_a_call() -> None:
    """GRPC clients see a broken stream when it does not; the first mistakes are named and the rest is counted."""
    draft = good(files=tuple(SourceFile(f"../{'%' * 60}{index}", b"") for index in range(900)))
    with pytest.raises(InvalidRequest) as refused:
        judge(draft, SETTINGS, RUNTIMES)
    status = to_status(refused.value)
    told = to_bad_request(refused.value.violations).field_violations
    assert told[0].field == "files[0].path"
    assert re.fullmatch(r"8\d\d more fields are wrong", told[-1].description)
    assert len(quote(status.message)) + len(base64.b64encode(status.SerializeToString())) < 8192 - 200


def test_all_limits_can_be_refused_at_once() -> None:
    """What is wrong with every one of them is told in one answer."""
    wrong = dict.fromkeys((field.name for field in fields(Limits)), math.inf)
    assert len(refusals(good(limits=wrong))) == len(wrong)
