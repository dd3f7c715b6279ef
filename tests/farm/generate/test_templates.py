"""Templates: those of the package, those of one's own, and what is wrong with one."""

from __future__ import annotations

import pytest

from dtf_lightning.errors import SettingsError
from dtf_lightning.farm.generate.index import TemplateIndex
from dtf_lightning.farm.generate.templates import TemplateLibrary


def write(folder, **texts):
    for name, text in texts.items():
        (folder / f"{name}.py.j2").write_text(text)
    return folder


def test_own_templates_take_the_place_of_the_packages_and_add_checks(tmp_path):
    own = write(
        tmp_path,
        test_shapes="{#\nversion: 7\nneeds: [torch]\n#}\nshapes = 1\n",
        test_fairness="{#\nafter: [shapes]\npriority: 5\nmemory: training\nexclusive: true\n#}\nname = {{ model.name | python }}\n",
    )
    packaged, library = TemplateLibrary(), TemplateLibrary(own)
    assert {*library.templates} - {*packaged.templates} == {"test_fairness.py"}
    assert library.templates["test_shapes.py"].version == 7
    assert library.render("test_shapes.py", {}) == "shapes = 1\n"
    assert library.render("test_fairness.py", {"model": {"name": "m"}}) == 'name = "m"\n'
    (check,) = [check for check in library.checks if check.name == "fairness"]
    assert (check.after, check.priority, check.memory, check.exclusive) == (("shapes",), 5, "training", True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{#\nversion: 1\n#}\na = 1\nb = {{ nobody }}\n", "line 5: UndefinedError: 'nobody' is undefined"),
        ("a = 1\n{{ model.nothing }}\n", "line 2: UndefinedError: 'dict object' has no attribute 'nothing'"),
        ("a = 1\n\n{% if %}\n", "line 3: Expected an expression"),
        ("a = 1\n{{ 1 / 0 }}\n", "line 2: ZeroDivisionError"),
        ("a = (\n", "what it makes is no Python: '\\(' was never closed in line 1 of test_x.py: a = \\("),
        ("{#\nversion: 1\nafer: [shapes]\n#}\n", ":3:1: unknown key 'afer' in a template's head; did you mean 'after'"),
        ("{#\nversion: one\n#}\n", ":2:10: version is a whole number, got 'one'"),
        ("{#\nneeds: [fowrard]\n#}\n", ":2:9: 'fowrard' is no condition; did you mean 'forward'"),
        ("{#\nmemory: much\n#}\n", ":2:9: memory is one of forward"),
        ("{#\nexclusive: 3\n#}\n", ":2:12: exclusive is true or false"),
        ("{#\nseconds: soon\n#}\n", ":2:10: seconds is a number"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(tmp_path, text, told):
    with pytest.raises(SettingsError, match=rf"test_x\.py\.j2.*{told}"):
        TemplateLibrary(write(tmp_path, test_x=text)).render("test_x.py", {"model": {}})


def test_a_folder_without_templates(tmp_path):
    with pytest.raises(SettingsError, match=r"has no files \*\.j2"):
        TemplateLibrary(tmp_path)
    with pytest.raises(SettingsError, match=r"has no files \*\.j2"):
        TemplateLibrary(tmp_path / "nowhere")


def test_the_index_says_what_the_files_say(tmp_path):
    """A template that changes without its version is another one by its digest; the older one stands in the history."""
    with TemplateIndex(":memory:") as index:
        own = write(tmp_path, test_x="{#\nversion: 2\n#}\n{{ model.name }} = {{ devices }}\n")
        index.update(TemplateLibrary(own).templates.values())
        (row,) = [row for row in index.rows() if row["id"] == "test_x.py"]
        assert (row["version"], row["inputs"], len(row["digest"])) == (2, ["devices", "model"], 64)
        write(tmp_path, test_x="{#\nversion: 2\n#}\n")
        index.update(TemplateLibrary(own).templates.values())
        assert sum(row["id"] == "test_x.py" for row in index.rows()) == 1
        assert sum(row["id"] == "test_x.py" for row in index.rows(history=True)) == 2
        index.update(TemplateLibrary().templates.values())
        assert all(row["id"] != "test_x.py" for row in index.rows())
