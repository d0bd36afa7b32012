"""The errors of docs/faq.md are those that its programs meet, word for word."""

import contextlib
import pathlib
import re
import warnings

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "faq.md"
BLOCK = re.compile(
    r"^```(python|py raises|py warns)\n(.*?)^```(?:\n+```text\n(.*?)^```)?", re.S | re.M
)
BLOCKS = [(kind, program, told) for kind, program, told in BLOCK.findall(PAGE.read_text())]


def one_line(text):
    return " ".join(text.split())


def met(kind, program, names):
    """The error or the warning that a program meets, as Python shows it."""
    if kind == "py warns":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            exec(compile(program, "faq.md", "exec"), names)
        return [one_line(f"{each.category.__name__}: {each.message}") for each in caught]
    try:
        exec(compile(program, "faq.md", "exec"), names)
    except Exception as error:
        return [one_line(f"{type(error).__name__}: {error}")]
    return ["nothing"]


def test_every_error_is_met_as_it_is_told(tmp_path):
    names, faults = {}, []
    with contextlib.chdir(tmp_path):
        for kind, program, told in BLOCKS:
            if kind == "python":
                exec(compile(program, "faq.md", "exec"), names)
                continue
            messages = met(kind, program, names)
            pattern = re.escape(one_line(told)).replace(r"\.\.\.", ".*")
            if not any(re.fullmatch(pattern, message) for message in messages):
                faults.append(f"{program}meets\n{messages}\nand the page says\n{one_line(told)}\n")
    assert not faults, "\n".join(faults)
    assert len([kind for kind, *_ in BLOCKS if kind != "python"]) >= 15
