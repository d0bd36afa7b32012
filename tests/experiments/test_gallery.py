"""The page of figures says five things of every figure, and says what the studies say."""

import re

import pytest

from experiments.tools import gallery
from experiments.tools.command import expected
from experiments.tools.study import lasting

COUNTED = {"dadao", "dfedsam", "dimat", "learning_rate", "variance_corrected"}


@pytest.fixture(scope="module")
def known():
    return gallery.every_study()


def test_every_study_says_how_long_it_takes(known):
    for _, study in known.values():
        words = expected(study, study.config())
        assert re.fullmatch(r"some minutes|about \d+ (s|min) of a CPU core", words)
        assert expected(study, study.quick) == "less than a minute of a CPU core"
    # Whoever runs one of the others through writes the number that it prints at its end into it.
    counted = sorted(name for name, (_, study) in known.items() if study.seconds)
    assert set(counted) >= COUNTED


def test_every_kept_figure_belongs_to_one_study(known):
    stated = [p.file for _, study in known.values() for p in study.pictures if p.file]
    assert sorted(stated) == gallery.kept()


def test_the_page_is_what_the_studies_say(known):
    renew = "python -m experiments.tools.gallery writes it anew"
    assert gallery.PAGE.read_text() == gallery.page(known), renew


def test_the_page_says_five_things_of_every_figure(known):
    sections = re.split(r"^### ", gallery.page(known), flags=re.M)[1:]
    assert len(sections) == len(gallery.kept())
    for section in sections:
        assert "{" not in section
        claim = section.split("\n\n")[1]
        assert claim.endswith(".")
        assert len(claim) > 20
        facts = dict(re.findall(r"^- \*\*(.+?):\*\* (.+)$", section, flags=re.M))
        assert list(facts) == ["Data", "Bands and bars", "Command", "Run time"]
        (name,) = re.findall(r"^`python -m experiments\.(\w+)", facts["Command"])
        (picture,) = re.findall(r"!\[.+\]\(\.\./figures/(.+)\)", section)
        assert picture in [p.file for p in known[name][1].pictures]


def test_pictures_name_settings_that_there_are(known):
    for _, study in known.values():
        for picture in study.pictures:
            for config in (study.config(), study.quick):
                assert "{" not in picture.heading(config)


def test_figures_of_a_study_that_ran_are_taken_over(known, tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "FIGURES", tmp_path / "docs")
    (tmp_path / "docs").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "heat_map.png").write_bytes(b"drawn")
    study = known["learning_rate"][1]
    assert gallery.take_over("learning_rate", study, tmp_path / "run") == ["learning_rate.png"]
    assert (tmp_path / "docs" / "learning_rate.png").read_bytes() == b"drawn"
    with pytest.raises(FileNotFoundError, match=r"run `python -m experiments.learning_rate` first"):
        gallery.take_over("learning_rate", study, tmp_path / "docs")


@pytest.mark.parametrize(
    ("seconds", "words"), [(2, "10 s"), (44, "40 s"), (88, "90 s"), (95, "2 min"), (601, "10 min")]
)
def test_durations_are_said_as_exactly_as_they_are_known(seconds, words):
    assert lasting(seconds) == words
