"""Sources: found in a fixed order, named by content, refused in one clear line."""

import gzip

import pytest

from gpt.errors import UserError
from tasks.sources import find


def identities(*entries: object) -> list[dict]:
    return [source.identity for source in find([str(entry) for entry in entries])]


def test_a_file_is_named_by_its_content_and_not_by_its_path(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    before = identities(tmp_path / "a.txt")
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert identities(tmp_path / "b.txt") == before
    (tmp_path / "b.txt").write_text("two")
    assert identities(tmp_path / "b.txt") != before


def test_the_built_in_corpus_depends_on_its_cap():
    assert find(["pydocs"], 1)[0].digest != find(["pydocs"], 2)[0].digest


def test_adding_and_removing_a_file_of_a_folder_is_noticed(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    one = identities(tmp_path)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.md").write_text("two")
    assert len(identities(tmp_path)) == 2
    (tmp_path / "deep" / "b.md").unlink()
    assert identities(tmp_path) == one


def test_folders_and_globs_come_by_name_without_hidden_and_unknown_files(tmp_path):
    for name in ("b.txt", "a.jsonl", ".hidden.txt", "c.pdf", "d.jsonl.gz"):
        (tmp_path / name).write_text(name)
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "x.txt").write_text("x")
    names = [source.path.rpartition("/")[2] for source in find([str(tmp_path)])]
    assert names == ["a.jsonl", "b.txt", "d.jsonl.gz"]
    assert [source.path for source in find([f"{tmp_path}/*.txt"])] == [f"{tmp_path}/b.txt"]


def test_two_files_with_equal_content_count_once(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("same")
    heard: list[str] = []
    assert len(find([str(tmp_path)], note=heard.append)) == 1
    assert heard == [f"{tmp_path}/b.txt has the content of {tmp_path}/a.txt and counts once"]


@pytest.mark.parametrize("entry", ["no/such.txt", "no/*.jsonl", ".", "table.xlsx", "text.txt.gz", "ftp://x.org/a.txt"])
def test_what_cannot_be_read_is_refused_in_one_line_that_names_it(entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.xlsx").write_bytes(b"x")
    (tmp_path / "text.txt.gz").write_bytes(gzip.compress(b"x"))
    with pytest.raises(UserError) as error:
        find([entry])
    assert repr(entry) in str(error.value)
    assert "\n" not in str(error.value)


def test_an_empty_list_and_an_unreadable_file_are_refused(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="names nothing"):
        find([])

    def refuse(path):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.txt").write_text("x")
    monkeypatch.setattr("tasks.sources.file_digest", refuse)  # as root, permissions do not bind
    with pytest.raises(UserError, match="Permission denied"):
        find([str(tmp_path / "a.txt")])


def test_a_hub_name_without_a_network_is_refused_and_with_one_is_pinned_to_a_commit(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hub gave OfflineModeIsEnabled"):
        find(["hf:roneneldan/TinyStories"])

    class Hub:
        """Answers as `HfApi.dataset_info` does as far as it is asked: an object with `sha`."""

        sha = "0123abc"

        def dataset_info(self, name):
            return self

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    expected = {"hub": "a/b", "config": "en", "split": "test", "commit": "0123abc"}
    assert identities("hf:a/b:en:test") == [expected]
    assert identities("hf:a/b") == [expected | {"config": None, "split": "train"}]


def test_a_local_builder_takes_files_of_any_ending(tmp_path):
    (tmp_path / "table.tsv").write_text("a,b")
    source = find([f"hf:csv:{tmp_path}/table.tsv"])[0]
    assert (source.kind, source.format) == ("file", "hf:csv")
