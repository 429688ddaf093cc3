"""`keys rotate`, `keys sign`, `keys show`: root keys in different hands, what changes, what is still missing, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from abupdate.formats import keyring, rotation, signature
from abupdate.host import keys
from abupdate.model import Keyring, RoleName
from tests.workstation import call

NAMES = ("r1", "r2", "r3", "n1", "n2", "a", "b", "s")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Key pairs of these names and `one.abk`: 2 of r1 r2 r3 are root, a signs releases, s security fixes."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        keys.generate(Path(name))
    words = "keys keyring -o one.abk --version 1 --root r1.pub --root r2.pub --root r3.pub --root-threshold 2 --release a.pub"
    ok(*words.split(), "--security", "s.pub", "--sign", "r1.pem", "--sign", "r2.pem")
    return tmp_path


def ok(*words: str) -> Any:
    """The document of a command that succeeds."""
    done = call("--json", *words)
    assert done.code == 0, done.err
    return done.document


def bad(code: int, text: str, *words: str) -> None:
    """A command that ends with this code and these words, and writes nothing."""
    before = {path: path.read_bytes() for path in Path().iterdir()}
    done = call(*words)
    assert (done.code, done.out) == (code, ""), done.err
    assert text in done.err
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def names(document: Any, role: str) -> set[str]:
    """The keys of a role, by the names of their files."""
    ids = {signature.key_id(keys.load_public(Path(f"{name}.pub")).raw): name for name in NAMES}
    return {ids[key] for key in document["roles"][role]["keys"]}


def signatures(document: Any) -> list[tuple[int, int, int]]:
    """Version, signatures that there are, signatures that are needed."""
    return [(row["version"], row["have"], row["need"]) for row in document["root_signatures"]]


def read(name: str) -> Keyring:
    """A keyring file."""
    return keyring.parse(Path(name).read_bytes())


def follows(old: str, new: str) -> bool:
    """Whether a device takes it."""
    steps = rotation.walk(read(old), Path(new).read_bytes(), allow_test_keys=False)
    return [step.ring.version for step in steps] == [read(old).version + 1]


def test_what_is_not_said_stays(folder: Path) -> None:
    made = ok("keys", "rotate", "one.abk", "-o", "two.abk", "--sign", "r1.pem", "--sign", "r3.pem")
    assert (made["version"], made["complete"], signatures(made)) == (2, True, [(1, 2, 2), (2, 2, 2)])
    assert read("two.abk").roles == read("one.abk").roles
    assert follows("one.abk", "two.abk")
    # From a chain: its last version.
    Path("chain.abk").write_bytes(Path("one.abk").read_bytes() + Path("two.abk").read_bytes())
    assert ok("keys", "rotate", "chain.abk", "-o", "three.abk")["version"] == 3


def test_holders_sign_one_after_the_other(folder: Path) -> None:
    new_roots = ("--root", "n1.pub", "--root", "n2.pub", "--root-threshold", "2")
    made = ok("keys", "rotate", "one.abk", "-o", "two.abk", *new_roots)
    assert (made["complete"], made["signed_by"], signatures(made)) == (False, [], [(1, 0, 2), (2, 0, 2)])
    hands = [("n1", [(1, 0, 2), (2, 1, 2)]), ("r2", [(1, 1, 2), (2, 1, 2)]), ("r3", [(1, 2, 2), (2, 1, 2)]), ("n2", [(1, 2, 2), (2, 2, 2)])]
    for name, wanted in hands:
        with pytest.raises(Exception, match="root keys and needs"):
            follows("one.abk", "two.abk")
        made = ok("keys", "sign", "two.abk", "--previous", "one.abk", "--key", f"{name}.pem")
        assert signatures(made) == wanted
        bad(4, "signed by that key already", "keys", "sign", "two.abk", "--previous", "one.abk", "--key", f"{name}.pem")
    assert made["complete"]
    assert follows("one.abk", "two.abk")
    # A third signature of the old holders does no harm; without the version before nothing is said about it.
    made = ok("keys", "sign", "two.abk", "--previous", "one.abk", "--key", "r1.pem")
    assert (signatures(made), len(made["signed_by"])) == ([(1, 3, 2), (2, 2, 2)], 5)
    text = call("keys", "show", "one.abk", "two.abk").out
    assert "keyring version 2" in text
    assert "signed by 3 of version 1's root keys, 2 needed" in text


def test_what_is_said_to_the_holders(folder: Path) -> None:
    done = call("keys", "rotate", "one.abk", "-o", "two.abk", "--root", "n1.pub", "--root-threshold", "1", "--sign", "r1.pem")
    assert "signed by 1 of version 1's root keys, 2 needed, 1 still missing" in done.out
    assert "signed by 0 of version 2's root keys, 1 needed, 1 still missing" in done.out
    done = call("keys", "sign", "two.abk", "--key", "n1.pem")
    assert "version 1's signatures are not counted: name it with --previous" in done.out
    assert not ok("keys", "show", "two.abk")["keyrings"][0]["complete"]
    assert [row["complete"] for row in ok("keys", "show", "one.abk", "two.abk")["keyrings"]] == [True, False]


def test_keys_are_added_replaced_and_revoked(folder: Path) -> None:
    both = ("--sign", "r1.pem", "--sign", "r2.pem")
    made = ok("keys", "rotate", "one.abk", "-o", "two.abk", "--add-release", "b.pub", "--release-threshold", "2", "--admin", "a.pub", *both)
    assert (names(made, "release"), made["roles"]["release"]["threshold"], names(made, "admin")) == ({"a", "b"}, 2, {"a"})
    # By file and by id; out of every role.
    key = signature.key_id(keys.load_public(Path("a.pub")).raw)
    for number, revoked in enumerate(("a.pub", key, key.upper())):
        made = ok(
            "keys",
            "rotate",
            "two.abk",
            "-o",
            f"three-{number}.abk",
            "--revoke",
            revoked,
            "--release-threshold",
            "1",
            "--admin",
            "s.pub",
            *both,
        )
        assert (names(made, "release"), names(made, "admin"), made["complete"]) == ({"b"}, {"s"}, True)
    # The last key of a role that may be missing takes the role with it.
    made = ok("keys", "rotate", "two.abk", "-o", "three.abk", "--revoke", "s.pub", *both)
    assert set(made["roles"]) == {"root", "release", "admin"}
    # A revoked root key still counts for the version before, and no more for its own.
    made = ok("keys", "rotate", "one.abk", "-o", "four.abk", "--revoke", "r1.pub", *both)
    assert (names(made, "root"), signatures(made)) == ({"r2", "r3"}, [(1, 2, 2), (2, 1, 2)])
    made = ok("keys", "rotate", "one.abk", "-o", "five.abk", "--release", "b.pub", *both)
    assert names(made, "release") == {"b"}


def test_a_version_that_is_there_is_not_made_again(folder: Path) -> None:
    """Devices that have it would refuse another one of that number for ever."""
    ok("keys", "rotate", "one.abk", "-o", "two.abk", "--add-release", "b.pub", "--sign", "r1.pem", "--sign", "r2.pem")
    before = {path.name: path.read_bytes() for path in Path().glob("*.abk")}
    bad(2, "exists", "keys", "rotate", "one.abk", "-o", "two.abk", "--sign", "r1.pem")
    bad(2, "exists", "keys", "keyring", "-o", "two.abk", "--version", "2", "--root", "r1.pub", "--release", "b.pub", "--sign", "r1.pem")
    assert {path.name: path.read_bytes() for path in Path().glob("*.abk")} == before


def test_what_cannot_be_rotated(folder: Path) -> None:
    rotate = ("keys", "rotate", "one.abk", "-o", "two.abk")
    for text, *words in (
        ("is no root key of version 1 or 2", "--sign", "a.pem"),
        ("threshold of 2", "--root", "n1.pub"),
        ("has 1 keys and a threshold of 2", "--revoke", "r1.pub", "--revoke", "r2.pub"),
        ("no release role", "--revoke", "a.pub"),
        ("is in no role", "--revoke", "b.pub"),
        ("is in no role", "--revoke", "0" * 16),
        ("does not exist", "--revoke", "missing.pub"),
        ("a key twice", "--add-release", "a.pub"),
        ("threshold of 0", "--release-threshold", "0"),
        ("does not fit", "--release-threshold", "256"),
        ("does not fit", "--release-threshold", "-1"),
        ("there are no admin keys", "--admin-threshold", "1"),
        ("the same key is given twice", "--sign", "r1.pem", "--sign", "r1.pem"),
    ):
        bad(2, text, *rotate, *words)
    Path("cut.abk").write_bytes(Path("one.abk").read_bytes()[:-1])
    bad(3, "instead of", "keys", "rotate", "cut.abk", "-o", "two.abk")
    Path("empty.abk").touch()
    bad(2, "is empty", "keys", "rotate", "empty.abk", "-o", "two.abk")
    bad(2, "no keyring in the files", "keys", "show", "empty.abk")
    bad(2, "cannot read", "keys", "rotate", "missing.abk", "-o", "two.abk")
    # What devices do not take is no ground to build on.
    ok(*rotate, "--sign", "r1.pem")
    bad(3, "signed by 1 of its root keys", "keys", "rotate", "two.abk", "-o", "three.abk")


def test_what_cannot_be_signed(folder: Path) -> None:
    ok("keys", "rotate", "one.abk", "-o", "two.abk", "--root", "n1.pub", "--root-threshold", "1", "--sign", "r1.pem")
    bad(2, "name that one with --previous", "keys", "sign", "two.abk", "--key", "r2.pem")
    bad(2, "no root key of version 1 or 2", "keys", "sign", "two.abk", "--previous", "one.abk", "--key", "a.pem")
    bad(2, "is version 1", "keys", "sign", "one.abk", "--previous", "one.abk", "--key", "r3.pem")
    data = bytearray(Path("two.abk").read_bytes())
    ring = read("two.abk")
    spoiled = ring.signatures[0].value[:5] + bytes([ring.signatures[0].value[5] ^ 1]) + ring.signatures[0].value[6:]
    Path("wrong.abk").write_bytes(keyring.build(ring.body, [type(ring.signatures[0])(ring.signatures[0].public_key, spoiled)]))
    bad(3, "is wrong", "keys", "sign", "wrong.abk", "--previous", "one.abk", "--key", "r2.pem")
    data[-1] ^= 1
    Path("wrong.abk").write_bytes(data)
    bad(3, "damaged", "keys", "sign", "wrong.abk", "--previous", "one.abk", "--key", "r2.pem")


def test_a_first_keyring_passes_through_hands_too(folder: Path) -> None:
    roles = ("--root", "r1.pub", "--root", "r2.pub", "--root-threshold", "2", "--release", "a.pub")
    words = ("keys", "keyring", "-o", "first.abk", "--version", "1", *roles, "--sign", "r1.pem")
    bad(2, "needs 2", *words)
    made = ok(*words, "--partial")
    assert (made["complete"], signatures(made)) == (False, [(1, 1, 2)])
    Path("first.abk").chmod(0o640)
    made = ok("keys", "sign", "first.abk", "--key", "r2.pem")
    assert (made["complete"], signatures(made)) == (True, [(1, 2, 2)])
    assert Path("first.abk").stat().st_mode & 0o777 == 0o640
    keyring.check_self_signed(read("first.abk"))


def test_a_key_that_is_encrypted_and_a_mark_that_stays(folder: Path) -> None:
    Path("pass").write_text("secret\n")
    Path("pass").chmod(0o600)
    keys.generate(Path("toy"), passphrase=b"secret", test=True)
    made = ("keys", "rotate", "one.abk", "-o", "two.abk", "--add-root", "toy.pub", "--sign", "r1.pem", "--sign", "toy.pem")
    bad(2, "is encrypted", *made)
    assert signatures(ok(*made, "--passphrase-file", "pass")) == [(1, 1, 2), (2, 2, 2)]
    ok("keys", "sign", "two.abk", "--previous", "one.abk", "--key", "r3.pem")
    ok("keys", "rotate", "two.abk", "-o", "three.abk")
    for name in ("two.abk", "three.abk"):
        marked = [key for key in read(name).roles[RoleName.ROOT].keys if key.test]
        assert marked == [keys.load_public(Path("toy.pub"))]
    assert "(test key)" in call("keys", "show", "three.abk").out


def test_chains_in_bundles(folder: Path) -> None:
    both = ("--sign", "r1.pem", "--sign", "r2.pem")
    ok("keys", "rotate", "one.abk", "-o", "two.abk", *both)
    ok("keys", "rotate", "two.abk", "-o", "three.abk", *both)
    Path("rootfs").write_bytes(b"content " * 5000)
    spec = 'compatible = "acme"\nversion = "1.0"\nsecurity_counter = 1\n{}[images.rootfs]\nfile = "rootfs"\n'
    Path("plain.toml").write_text(spec.format(""))
    Path("chain.toml").write_text(spec.format('chain = ["one.abk", "two.abk"]\n'))
    whole = b"".join(Path(f"{name}.abk").read_bytes() for name in ("one", "two", "three"))
    Path("all.abk").write_bytes(whole)

    def chain(bundle: str) -> list[int]:
        document = ok("info", bundle, "--keyring", "one.abk")
        assert document["accepted"]
        found = document["chain"]
        assert isinstance(found, list)
        return found

    create = ("bundle", "create", "plain.toml", "-o", "out.abu", "--key", "a.pem")
    ok(*create)
    plain = Path("out.abu").read_bytes()
    assert chain("out.abu") == []
    ok(*create, "--chain", "all.abk")
    assert chain("out.abu") == [1, 2, 3]
    ok(*create, "--chain", "two.abk", "--chain", "three.abk")
    assert chain("out.abu") == [2, 3]
    ok("bundle", "create", "chain.toml", "-o", "out.abu", "--key", "a.pem")
    assert chain("out.abu") == [1, 2]
    # A signature more: the chain stays. Another chain: the signatures stay. And both at once.
    assert ok("bundle", "sign", "out.abu", "--key", "b.pem")["chain"] == [1, 2]
    signed = ok("bundle", "sign", "out.abu", "--chain", "all.abk")
    assert (signed["chain"], len(signed["signed_by"])) == ([1, 2, 3], 2)
    bad(4, "carries this chain already", "bundle", "sign", "out.abu", "--chain", "all.abk")
    bad(4, "signed by that key already", "bundle", "sign", "out.abu", "--key", "a.pem")
    signed = ok("bundle", "sign", "out.abu", "--chain", "one.abk", "--key", "a.pem", "--key", "s.pem")
    assert (signed["chain"], len(signed["signed_by"])) == ([1], 3)
    ok("bundle", "extract", "out.abu", "-o", "d", "--keyring", "one.abk")
    assert Path("d/rootfs.img").read_bytes() == Path("rootfs").read_bytes()
    for file in Path("d").iterdir():
        file.unlink()
    Path("d").rmdir()
    # A bundle without a chain is what it always was.
    assert plain[20:24] == bytes(4)
    for text, *words in (
        ("version 2 must come between", "--chain", "one.abk", "--chain", "three.abk"),
        ("put them in order", "--chain", "two.abk", "--chain", "one.abk"),
        ("put them in order", "--chain", "one.abk", "--chain", "one.abk"),
        ("not a keyring", "--chain", "plain.toml"),
        ("cannot read", "--chain", "missing.abk"),
    ):
        bad(2, text, *create, *words)
        bad(2, text, "bundle", "sign", "out.abu", *words)
    ok("keys", "rotate", "one.abk", "-o", "half.abk", "--sign", "r1.pem")
    bad(2, "signed by 1 of version 1's", *create, "--chain", "one.abk", "--chain", "half.abk")
    bad(2, "signed by 1 of its root keys", *create, "--chain", "half.abk")
    bad(2, "neither --key nor --chain", "bundle", "sign", "out.abu")
