"""How the JavaScript and TypeScript worker finds out what code wants, and calls it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.node_worker import run

LANGUAGES = ("javascript", "typescript")


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("code", "inputs", "expected"),
    [
        ("function main(args) { return args }", {"a": 1, "b": [2]}, {"a": 1, "b": [2]}),
        ("async function main(args) { return (await args).a }", {"a": 1}, 1),
        ("const main = (args = {}) => args.a", {"a": 1}, 1),
        ("const main = async (a, b = 5) => a + b", {"a": 1}, 6),
        ("function main(b, a) { return [a, b] }", {"a": 1, "b": 2}, [1, 2]),
        ("function main({ a, b }) { return a + b }", {"a": 1, "b": 2}, 3),
        ("function main({ a, ...others }) { return others }", {"a": 1, "b": 2, "c": 3}, {"b": 2, "c": 3}),
        (
            "function main({ 'first name': name, b: { c } = { c: 7 } }) { return [name, c] }",
            {"first name": "x"},
            ["x", 7],
        ),
        ("function main(args) { return args.x }", {"args": {"x": 1}}, 1),
        ("function main() { return 'no inputs' }", {}, "no inputs"),
        ("export default function main(args) { return args.a }", {"a": 1}, 1),
        ("export const main = async ({ a }) => a", {"a": 1}, 1),
        ("const work = (args) => args.a; export { work as main }", {"a": 1}, 1),
        ("let main; main = wrap((args) => args.a); function wrap(f) { return (args) => f(args) }", {"a": 1}, 1),
        ("const main = (function (all) { return all }).bind(null)", {"a": 1}, {"a": 1}),
    ],
)
def test_main_gets_its_inputs_as_it_asks_for_them(
    language: str, code: str, inputs: dict[str, Any], expected: Any
) -> None:
    """One object, by position, by pattern; declared, assigned or exported."""
    assert run(code, inputs, language=language).result == expected


@pytest.mark.parametrize(
    "code",
    [
        "module.exports = { main(args) { return args.a } }",
        "module.exports = { other: 1, main: async (args) => args.a }",
        "exports.main = (args) => args.a",
        "module.exports.main = function (args) { return args.a }",
    ],
)
def test_main_may_be_a_commonjs_export(code: str) -> None:
    """What tutorials for code nodes write."""
    assert run(code, {"a": 1}).result == 1


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize(
    ("code", "inputs", "expected"),
    [
        ("const y = x * 2;\nreturn { y }", {"x": 4}, {"y": 8}),
        ("const y = x * 2;\ny + 1", {"x": 4}, 9),
        ("const y = x * 2; y + 1; // said", {"x": 4}, 9),
        ("if (x > 3) return 'early';\n'late'", {"x": 4}, "early"),
        ("for (const i of [1, 2, 3]) { if (i === x) return i }", {"x": 2}, 2),
        ("return", {}, None),
        ("const x = 1", {}, None),
        ("", {}, None),
        ("'hello'", {}, "hello"),
        ("({ a: x })", {"x": 1}, {"a": 1}),
        ("await Promise.resolve(x)", {"x": 1}, 1),
        ("Promise.resolve(x)", {"x": 1}, 1),
        ("const { y } = await Promise.resolve({ y: 2 });\nreturn y", {}, 2),
        ("return // nothing\n5", {}, None),
        ("let x = 5; var z = z || 7; [x, z]", {"x": 1, "z": 3}, [5, 3]),
        ("return naïve + 日本", {"naïve": 1, "日本": 2}, 3),
        ("return (async () => { return x })()", {"x": 1}, 1),
    ],
)
def test_a_script_has_inputs_as_variables_and_a_value(
    language: str, code: str, inputs: dict[str, Any], expected: Any
) -> None:
    """A return at the top level, else the last expression, else nothing."""
    assert run(code, inputs, language=language).result == expected


@pytest.mark.parametrize(
    ("code", "stdout"),
    [
        ("function main() { console.log('ran') }\nmain()", "ran\n"),
        ("async function main() { console.log('ran') }\nmain().then(() => console.log('done'))", "ran\ndone\n"),
        ("async function main() { console.log('ran') }\n(async () => { await main() })()", "ran\n"),
        ("const main = () => { console.log('ran') }\nif (true) { main() }", "ran\n"),
    ],
)
def test_code_that_calls_main_itself_is_a_script(code: str, stdout: str) -> None:
    """Main runs once, not twice."""
    assert run(code).stdout == stdout


@pytest.mark.parametrize(
    "code",
    [
        "function main(args) { console.log('once'); return args }\nif (require.main === module) main({})",
        "function main(args) { console.log('once'); return args }\nrequire.main === module && main({})",
        "export function main(args) { console.log('once'); return args }\nif (import.meta.main) main({})",
        (
            "import { fileURLToPath } from 'node:url'\nexport function main(args) { console.log('once'); return args }\n"
            "if (process.argv[1] === fileURLToPath(import.meta.url)) main({})"
        ),
    ],
)
def test_a_guarded_call_of_main_is_not_made(code: str) -> None:
    """`require.main === module` is false when main is called for the code, so main runs once, with the inputs."""
    ran = run(code, {"x": 1})
    assert ran.result == {"x": 1}
    assert ran.stdout == "once\n"


def test_a_script_is_the_program_itself() -> None:
    """`require.main === module` holds there, as under node."""
    assert run("return [require.main === module, import.meta.main]").result == [True, True]


@pytest.mark.parametrize(
    ("code", "inputs", "message"),
    [
        (
            "function main({ a, b, c = 1 }) {}",
            {"a": 1, "d": 2},
            "main({ a, b, c = … }) does not fit the inputs: missing b; unexpected d",
        ),
        ("function main(a, b) {}", {"a": 1}, "main(a, b) does not fit the inputs: missing b"),
        ("function main() {}", {"a": 1}, "main() does not fit the inputs: unexpected a"),
        ("function main(a, ...rest) {}", {"a": 1, "b": 2}, "main(a, ...rest) does not fit the inputs: unexpected b"),
        ("function main([a]) {}", {"a": 1}, "main([…]) has a parameter without a name"),
        (
            "function main(args) {}",
            {"args": 1, "first name": 2},
            'main(args) does not fit the inputs: unexpected "first name"',
        ),
        ("1", {"first name": 1, "class": 2}, '"first name", class cannot be variables of a script'),
        ("import fs from 'fs'\nmodule", {"module": 1}, "module cannot be a variable of a script"),
        ("let main = wrap(1); function wrap(x) { return x }", {}, "main is number, not a function"),
    ],
)
def test_inputs_that_do_not_fit_are_named(code: str, inputs: dict[str, Any], message: str) -> None:
    """What main takes, what is missing and what is too much."""
    error = run(code, inputs).error
    assert error["kind"] == "ENTRY_NOT_FOUND"
    assert error["message"] == message


def test_a_misfit_names_the_place_of_main() -> None:
    """The editor can jump there."""
    error = run("\n/* 😀 */ function main(a) {}").error
    assert (error["file"], error["line"], error["column"]) == ("main.js", 2, 18)


@pytest.mark.parametrize(
    ("entry", "code", "expected"),
    [
        ("main_args", "const main = (whatever) => whatever", {"z": 1}),
        ("main_args", "function main({ z }) { return z }\nmain({ z: 5 })", 1),
        ("main_named", "const main = ({ z }) => z", 1),
        ("main_named", "function main(z) { return z }\nif (z0()) return 5\nfunction z0() { return false }", 1),
        ("script", "const main = (z) => 5\nz", 1),
    ],
)
def test_entry_overrides_detection(entry: str, code: str, expected: Any) -> None:
    """Whatever the code looks like."""
    assert run(code, {"z": 1}, entry=entry).result == expected


@pytest.mark.parametrize("entry", ["main_args", "main_named"])
def test_asking_for_a_main_that_is_not_there_is_refused(entry: str) -> None:
    """And nothing of the code has run."""
    ran = run("console.log('ran')", {"z": 1}, entry=entry)
    assert ran.error["kind"] == "ENTRY_NOT_FOUND"
    assert ran.error["message"] == "the code has no function main"
    assert ran.stdout == ""


def test_a_main_without_value_yet_is_refused() -> None:
    """A return before `const main` leaves nothing to call."""
    error = run("if (process) return\nconst main = () => 1", entry="main_named").error
    assert error["kind"] == "ENTRY_NOT_FOUND"
    assert error["message"] == "main has no value when the code has run"


def test_inputs_with_hostile_keys_are_plain_properties() -> None:
    """`__proto__` is a key like any other and pollutes nothing."""
    ran = run(
        "function main(args) {\n"
        "  return [Object.keys(args), {}.polluted ?? null, Object.getPrototypeOf(args) === Object.prototype]\n}",
        '{"__proto__": {"polluted": 1}, "constructor": 2, "toString": 3}',
    )
    assert ran.result == [["__proto__", "constructor", "toString"], None, True]


def test_ready_tells_the_versions() -> None:
    """The host shows them."""
    assert run("1").ready == {"version": "26.10.0"}
    assert run("1", language="typescript").ready == {"version": "26.10.0", "swc": "1.16.22"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_worker_made_for_a_snapshot_runs_a_job_as_well(language: str) -> None:
    """It has loaded and run everything before READY; the switch is not visible to user code."""
    ran = run("return process.env.BELLJAR_WARM ?? null", language=language, worker_env={"BELLJAR_WARM": "1"})
    assert ran.result is None
    assert ran.stderr == ""


SEED_MAIN = """
async function main({ input_var_1, input_var_2 }) {
    const result = input_var_1.toUpperCase();
    const count = input_var_2 * 2;

    return {
        processed_text: result,
        doubled_count: count,
    };
}
"""


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_example_of_the_seed_documents_runs_as_it_stands(language: str) -> None:
    """The one JavaScript program that users have in front of them."""
    ran = run(SEED_MAIN, {"input_var_1": "abc", "input_var_2": 21}, language=language)
    assert ran.result == {"processed_text": "ABC", "doubled_count": 42}


def test_files_are_written_to_the_working_directory() -> None:
    """As the seed documents promise for TypeScript; the folder is the test's here."""
    code = "import fs from 'fs'\nexport function main() { fs.writeFileSync('output.csv', 'a,b'); return process.cwd() }"
    ran = run(code, language="typescript")
    assert ran.result == str(ran.home)
    assert (ran.home / "output.csv").read_text() == "a,b"
