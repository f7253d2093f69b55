"""Files of prompts: what is read, what is refused, and that neither takes long."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import time
from pathlib import Path

import pytest

from disa.draw.folder import Layout
from disa.draw.inputs import Inputs
from disa.draw.prompts import LARGEST_FILE, LONGEST_PROMPT, MOST_PROMPTS, read_prompts
from disa.errors import DisaError

# Python's own `splitlines` cuts at all of these; people's texts have them in the middle.
INSIDE = "\u2028", "\u2029", "\x85", "\x1c", "\x1d", "\x1e"
CONTROLS = "\x0b", "\x0c"
CAT_AND_DOG = ["a cat", "a dog"]


def read(path: Path, content: str | bytes) -> list[str]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [entry["prompt"] for entry in read_prompts(path)]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.txt", "a cat\na dog\n"),
        ("p.txt", "\n\n  a cat  \r\n\r\na dog"),
        ("p.txt", "a cat\ra dog\r"),
        ("p", "a cat\n\ta dog\n"),
        ("p.prompts", "\ufeffa cat\na dog\n"),
        ("p.json", '["a cat", "a dog"]'),
        ("p", ' [{"prompt": "a cat"}, "a dog"]'),
        ("p.json", '[{"prompt": "a cat"},\n {"caption": "a dog", "id": 3}]'),
        ("p.JSON", '{"prompts": ["a cat", "a dog"]}'),
        ("coco.json", '{"info": {}, "annotations": [{"image_id": 1, "caption": "a cat"}, {"caption": "a dog"}]}'),
        ("mjhq.json", '{"0a": {"category": "x", "prompt": "a cat"}, "0b": {"prompt": "a dog"}}'),
        ("data.json", '{"version": 1, "data": [{"text": "a cat"}, {"Text": "a dog"}]}'),
        ("p.jsonl", '{"prompt": "a cat"}\n{"prompt": "a dog"}'),
        ("p.txt", '{"prompt": "a cat"}\n\n{"prompt": "a dog"}\n'),
        ("p.jsonl", '"a cat"\n"a dog"\n'),
        ("p.ndjson", '\ufeff{"prompt": "a cat"}\r\n\r\n{"prompt": "a dog"}\r\n'),
        ("p.json", '{"prompt": "a cat", "text": "never"}\n{"caption": "a dog"}'),
        ("p.csv", "prompt\na cat\na dog\n"),
        ("drawbench.csv", "Prompts,Category\na cat,x\na dog,y\n"),
        ("p.csv", 'id;caption\r\n1;a cat\r\n\r\n2;"a dog"\r\n'),
        ("parti.tsv", "Prompt\tCategory\tNote\na cat\tx\t\na dog\ty\t\n"),
        ("parti.txt", "Prompt\tCategory\na cat\tx\na dog\ty\n"),
        ("p.tsv", "text\na cat\na dog\n"),
        ("p.txt", "a cat\na dog\n".encode("utf-16")),
        ("p.jsonl", '{"prompt": "a cat"}\n{"prompt": "a dog"}\n'.encode("utf-16")),
        ("p.csv", b"\xfe\xff" + "prompt,x\na cat,1\na dog,2".encode("utf-16-be")),
        ("p.txt", "a cat\na dog\n".encode("utf-32")),
        ("p.txt.gz", gzip.compress(b"a cat\na dog\n", mtime=0)),
        ("p.jsonl.gz", gzip.compress(b'{"prompt": "a cat"}\n{"prompt": "a dog"}\n', mtime=0)),
    ],
)
def test_files_that_people_have(tmp_path: Path, name: str, content: str | bytes) -> None:
    assert read(tmp_path / name, content) == CAT_AND_DOG


@pytest.mark.parametrize("sign", INSIDE)
def test_a_line_ends_with_a_line_feed_and_with_nothing_else(tmp_path: Path, sign: str) -> None:
    text = f"a red circle{sign}above a blue square"
    assert read(tmp_path / "p.jsonl", json.dumps({"prompt": text}, ensure_ascii=False) + '\n{"prompt": "b"}') == [
        text,
        "b",
    ]
    assert read(tmp_path / "p.json", json.dumps([text, "b"], ensure_ascii=False)) == [text, "b"]
    assert read(tmp_path / "p.txt", f"{text}\nb") == [text, "b"]
    assert read(tmp_path / "p.csv", f"prompt,x\n{text},1\nb,2") == [text, "b"]


@pytest.mark.parametrize("sign", CONTROLS)
def test_tabs_of_other_kinds_stay_in_a_text(tmp_path: Path, sign: str) -> None:
    assert read(tmp_path / "p.txt", f"a{sign}cat\na dog") == [f"a{sign}cat", "a dog"]
    assert read(tmp_path / "p.jsonl", json.dumps({"prompt": f"a{sign}cat"})) == [f"a{sign}cat"]


def test_what_stands_twice_is_drawn_twice_and_the_rest_of_an_entry_is_kept(tmp_path: Path) -> None:
    assert read(tmp_path / "p.txt", "a cat\na cat\na cat\n") == ["a cat"] * 3
    (tmp_path / "p.jsonl").write_text('{"tag": "colors", "include": [{"count": 1}], "prompt": "a cat"}')
    assert read_prompts(tmp_path / "p.jsonl") == [{"tag": "colors", "include": [{"count": 1}], "prompt": "a cat"}]
    (tmp_path / "p.csv").write_text("id,Caption\n7,a cat\n")
    assert read_prompts(tmp_path / "p.csv") == [{"id": "7", "Caption": "a cat", "prompt": "a cat"}]


def test_two_hundred_prompts_of_which_some_repeat_are_two_hundred_files(tmp_path: Path) -> None:
    prompts = [f"a cat {i % 150}" for i in range(198)] + ["A cat 1!", "一只猫"]
    read_back = read(tmp_path / "p.txt", "\n".join(prompts))
    for seeds in (0, list(range(200)), [7] * 200):
        names = Layout.flat(Inputs.paired(seeds, prompts=read_back)).names
        assert len({name.lower() for name in names}) == 200


def test_texts_stay_as_they_are(tmp_path: Path) -> None:
    texts = ['a "red" circle', "[photo] a cat", "a, b; c", "prompt", "- a cat", "# a cat", "ünïcode 猫 🐱"]
    assert read(tmp_path / "p.txt", "\n".join(texts)) == texts
    assert read(tmp_path / "q.txt", "[photo] a cat\n[drawing] a dog\n") == ["[photo] a cat", "[drawing] a dog"]
    quoted = 'prompt,x\n"a ""red"" cat, and\na dog",1\n'
    assert read(tmp_path / "p.csv", quoted) == ['a "red" cat, and\na dog']


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("p.txt", "", "p.txt holds no prompt: expected at least one"),
        ("p.txt", " \n\n\t\n", "holds no prompt"),
        ("p.json", "[]", "holds no prompt"),
        ("p.json", "{}", "holds no prompt"),
        ("p.json", "", "p.json is not JSON"),
        ("p.csv", "prompt,x\n", "holds no prompt"),
        ("p.json", "3", "holds 3: expected a JSON list of prompts"),
        ("p.json", '"a cat"', "holds 'a cat': expected a JSON list"),
        ("p.json", '["a cat", 3]', "entry 2 of {} is not a prompt, found 3"),
        ("p.json", '["a cat", null]', "entry 2 of {} is not a prompt, found None"),
        ("p.json", '["a cat", ["a dog"]]', "entry 2 of {} is not a prompt"),
        ("p.json", '["a cat", {"name": "a dog"}]', "entry 2 of {} is not a prompt"),
        ("p.json", '[{"prompt": 3}]', "entry 1 of {} is not a prompt, its prompt is 3"),
        ("p.json", '[{"caption": ["a", "b"]}]', "entry 1 of {} is not a prompt, its caption is"),
        ("p.json", '["a cat", " "]', "entry 2 of {} is empty: expected words"),
        ("p.json", '["a \\ud83d"]', "is not JSON that can be read: it holds half of a character"),
        ("p.json", '["a \\u0000"]', "entry 1 of {} holds a NUL character"),
        ("p.json", '["a cat",\n', "is not JSON: Expecting value at line 2"),
        ("p.json", "[" * 100_000, "is nested too deeply"),
        ("p.json", "[" + "9" * 5000 + "]", "holds a number of over 100 digits"),
        ("p.json", '[{"prompt": "a", "score": NaN}]', "it holds the number NaN, which is not finite"),
        ("p.txt", '["a", NaN]', "it holds the number NaN"),
        ("p.jsonl", '"b"\n{"prompt": "a", "prompt": "c"}\n', "line 2 of {} is not JSON that can be read: it says"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": \n{"prompt": "b"}\n', "line 2 of {} is not JSON"),
        ("p.jsonl", '{"prompt": "a"\n{"prompt": "b"}\n', "line 1 of {} is not JSON"),
        ("p", '{"prompt": "a"}\n\n\n{"prompt": "b"} x\n', "line 4 of {} is not JSON"),
        ("p.jsonl", '{"prompt": "a"}\n[]\n', "line 2 of {} is not a prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": ""}\n', "line 2 of {} is empty"),
        ("p.csv", "name,kind\na,b\n", "has no column prompt, prompts, caption or text"),
        ("p.csv", "a cat\na dog\n", "has no column prompt"),
        ("p.csv", "prompt,x\na cat, red,1\n", "line 2 of {} has 3 cells, its header has 2 columns"),
        ("p.csv", "x,prompt\n1\n", "line 2 of {} is not a prompt"),
        ("p.csv", "x,prompt\n1,\n", "line 2 of {} is empty"),
        ("p.csv", 'prompt,x\n"a cat,1\n', "line 2 of {} is no row of a table"),
        ("p.txt", "a caf\u00e9".encode("latin-1"), "is not UTF-8 text (byte 6 is 0xe9): save it as UTF-8"),
        ("p.txt", "a cat".encode("utf-16-le"), "line 1 of {} holds a NUL character"),
        ("p.txt", b"\xff\xfea", "is not UTF-16 text"),
        ("p.txt", b"\x89PNG\r\n\x1a\n\0\0", "is not UTF-8 text"),
        ("p.txt", "a cat\nx\0y\n", "line 2 of {} holds a NUL character"),
        ("p.txt.gz", gzip.compress(b"a cat", mtime=0)[:-6], "is not a whole file of gzip"),
        ("p.txt", "x" * (LONGEST_PROMPT + 1), f"line 1 of {{}} has {LONGEST_PROMPT + 1} characters"),
        ("p.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "is a Git LFS pointer"),
        ("p.txt", "\n<!DOCTYPE html>\n<html>", "is a page of HTML"),
        ("p.yaml", "- a cat\n- a dog\n", "is a .yaml file: expected plain text"),
    ],
)
def test_what_is_refused_is_one_line(tmp_path: Path, name: str, content: str | bytes, said: str) -> None:
    with pytest.raises(DisaError) as error:
        read(tmp_path / name, content)
    message = str(error.value)
    assert said.format(tmp_path / name) in message
    assert name in message
    assert len(message) < 300 + len(str(tmp_path))
    assert "\n" not in message


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(DisaError, match=r"cannot read the file .*absent\.txt: it is not there"):
        read_prompts(tmp_path / "absent.txt")
    with pytest.raises(DisaError, match="it is a folder, not a file"):
        read_prompts(tmp_path)
    (tmp_path / "file").write_text("a cat")
    with pytest.raises(DisaError, match="below: Not a directory"):
        read_prompts(tmp_path / "file" / "below")
    with pytest.raises(DisaError, match="File name too long"):
        read_prompts(tmp_path / ("x" * 300))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_without_a_writer_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    began = time.process_time()
    for path in (tmp_path / "pipe.txt", Path("/dev/zero")):
        with pytest.raises(DisaError, match="it is a pipe or a device, not a file"):
            read_prompts(path)
    assert time.process_time() - began < 1


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(content: bytes) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return [entry["prompt"] for entry in read_prompts(Path("-"))]

    assert given(b"a cat\na dog\n") == CAT_AND_DOG
    assert given(b'{"prompt": "a cat"}\n{"prompt": "a dog"}\n') == CAT_AND_DOG
    assert given(b"Prompt\tKind\na cat\tx\na dog\ty\n") == CAT_AND_DOG
    with pytest.raises(DisaError, match="standard input holds no prompt"):
        given(b"")
    with pytest.raises(DisaError, match="line 1 of standard input is not JSON"):
        given(b'{"prompt": \n{"prompt": "a dog"}\n')


def test_huge_files_are_refused_before_they_are_read(tmp_path: Path) -> None:
    with open(tmp_path / "huge.txt", "wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(bytes(LARGEST_FILE + 1)))
    (tmp_path / "many.txt").write_bytes(b"a\n" * (MOST_PROMPTS + 1))
    began = time.process_time()
    for name, said in (
        ("huge.txt", "longer than 32 MiB"),
        ("bomb.txt.gz", "larger than"),
        ("many.txt", "more than 200000"),
    ):
        with pytest.raises(DisaError, match=said):
            read_prompts(tmp_path / name)
    assert time.process_time() - began < 5


def test_fifty_thousand_prompts_are_read_in_a_moment(tmp_path: Path) -> None:
    prompts = [f"a red circle number {i} above a blue square" for i in range(50_000)]
    (tmp_path / "p.txt").write_text("\n".join(prompts))
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps({"prompt": prompt}) for prompt in prompts))
    (tmp_path / "p.csv").write_text("prompt,x\n" + "\n".join(f"{prompt},1" for prompt in prompts))
    began = time.process_time()
    for name in ("p.txt", "p.jsonl", "p.csv"):
        assert [entry["prompt"] for entry in read_prompts(tmp_path / name)] == prompts
    assert time.process_time() - began < 5
