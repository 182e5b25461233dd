"""The form of every message that refuses something, in one table; other tests look for what tells one from another.

A message is one sentence of what was expected, what was found and what to do. It is read here from the source, where
``{...}`` stands for what a run fills in, so that none is left out.
"""

import ast
import re
from pathlib import Path

import pytest
from scripts.common.checks import RULES, check_settings

SCRIPTS = Path(__file__).parents[1] / "bundle" / "scripts"
# Completed by their callers, which say the rest: "FILE is no file: set `model_file` to ...".
PARTS = ("read_tensors", "_check", "_load")
TO_DO = """add change check choose convert copy correct delete exclude export extract give install keep label leave list
look lower make move name pip put remedy rename repair replace resample restore run set swap threshold train use wait
widen write""".split()
VAGUE = re.compile(r"\b(invalid|illegal|bad|wrong|please|sorry|oops|unable|exception|failure)\b|!|\n", re.IGNORECASE)


def text_of(node):
    """The text of a constant or an f-string; what is filled in is ``{expression}``; None where it is neither."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = [
            part.value if isinstance(part, ast.Constant) else f"{{{ast.unparse(part.value)}}}" for part in node.values
        ]
        return "".join(map(str, parts))
    return None


def messages():
    """Place and text of each error that is raised with a text of its own."""
    for path in sorted(SCRIPTS.rglob("*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(function, ast.FunctionDef):
                for node in ast.walk(function):
                    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                        text = text_of(node.exc.args[0])
                        if text is not None and re.search("[a-z]", outside(text).removeprefix("error: ")):
                            yield f"{path.relative_to(SCRIPTS)}:{function.name}", text


def outside(text):
    """A message without what a run fills in."""
    return re.sub(r"\{[^{}]*(\{[^{}]*\}[^{}]*)*\}", "", text)


TABLE = sorted({(place, text) for place, text in messages()})


def test_the_table_holds_the_messages():
    assert len(TABLE) > 140 and len({place.partition("/")[0] for place, _ in TABLE}) == 7


@pytest.mark.parametrize(("place", "text"), TABLE, ids=[place for place, _ in TABLE])
def test_message_is_one_sentence_that_says_what_to_do(place, text):
    words = outside(text).removeprefix("error: ")
    assert not VAGUE.search(words) and len(words) < 300
    assert not re.search(r"[.?] [A-Z]", words), "more than one sentence"
    names = "{" in text or "`" in text or ".json" in text
    assert names or text[0].islower(), "names nothing"  # what begins small follows the name of a case
    if place.rpartition(":")[2] in PARTS and not text.endswith("."):
        return
    assert text[-1] in ".?}", "no end"
    after = [word.lower() for word in re.findall(r"(?:[:;,]|\bor|\band|--) `?(?:it |them |only )?(\w+)", words)]
    required = re.search(r"\bmust\b.*, got |\bExpected\b.*, got ", text)
    filled_in = re.search(r"[:;,] ?\{\w+[^{}]*\}[^{}]*$", text)  # by a sentence, or by what is to be done
    assert required or filled_in or {*TO_DO} & {*after} or text.endswith("?"), "says nothing to do"


@pytest.mark.parametrize("name", sorted(RULES))
def test_refused_id_is_named_with_what_it_must_be_and_what_it_is(name):
    value = float("nan")
    with pytest.raises(ValueError, match=rf"^`{name}` must be .+, got nan(\.|; .+[.?])$"):
        check_settings(**{name: value})
