"""`fleet init` and `fleet sign`: a site's membership from a SITE.toml, its next epochs, a new beginning, and who has to sign."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from abupdate.formats import membership as memberships
from abupdate.formats.membership import Membership
from abupdate.host import keys
from tests.workstation import call

ROOTS, ADMINS = ("root1", "root2", "root3"), ("anna", "ben")
TOP = """\
site = "plant-7"
roots = ["root1.pub", "root2.pub"]
root_threshold = 2
admins = ["anna.pub", "ben.pub"]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Root and admin keys, and a site of four nodes in site.toml."""
    monkeypatch.chdir(tmp_path)
    for name in (*ROOTS, *ADMINS):
        keys.generate(Path(name))
    write("site.toml", TOP, nodes(4))
    return tmp_path


def node_key(number: int) -> str:
    """A node's key in hex; made at the first call."""
    path = Path(f"node{number}.pub")
    if not path.exists():
        keys.generate(Path(f"node{number}"))
    return keys.load_public(path).raw.hex()


def nodes(count: int, more: str = "") -> str:
    return "".join(f'[nodes.gw{number}]\nkey = "{node_key(number)}"\n{more}' for number in range(1, count + 1))


def write(name: str, *parts: str) -> None:
    Path(name).write_text("".join(parts))


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
    assert text in done.err, done.err
    assert done.err.count("\n") == 1
    assert {path: path.read_bytes() for path in Path().iterdir()} == before


def init(*words: str, signers: tuple[str, ...] = ("root1", "root2"), output: str = "site.abm") -> Any:
    signing = [word for name in signers for word in ("--key", f"{name}.pem")]
    return ok("fleet", "init", "site.toml", "-o", output, *signing, *words)


def read(name: str) -> Membership:
    return memberships.parse(Path(name).read_bytes())


def test_the_first_membership_and_its_numbers(folder: Path) -> None:
    document = init()
    found = read("site.abm")
    memberships.check_signed(found)
    assert (found.site, found.epoch, found.genesis) == ("plant-7", 1, found.digest)
    assert [(member.index, member.name, member.key.hex(), member.voter) for member in found.members] == [
        (number - 1, f"gw{number}", node_key(number), True) for number in range(1, 5)
    ]
    assert (found.faults, found.quorum, found.voter_budget, found.min_up, found.approvals) == (0, 3, 1, 3, 1)
    assert (found.admin_threshold, found.now_threshold, found.heartbeat_s, found.stall_ok) == (1, 2, 5, False)
    assert (document["complete"], document["membership"], document["quorum"]) == (True, found.digest.hex(), 3)
    assert len(document["signed_by"]) == 2


@pytest.mark.parametrize(("voters", "faults", "budget"), [(3, 0, 1), (4, 0, 1), (5, 0, 2), (6, 1, 1), (7, 1, 1), (10, 2, 1), (16, 4, 1)])
def test_by_default_as_many_liars_are_outlasted_as_leave_room_for_an_update(folder: Path, voters: int, faults: int, budget: int) -> None:
    write("site.toml", TOP, nodes(voters))
    init()
    assert (read("site.abm").faults, read("site.abm").live_budget) == (faults, budget)


def test_of_more_than_16_nodes_the_first_16_vote(folder: Path) -> None:
    write("site.toml", TOP, nodes(18))
    init()
    assert [member.voter for member in read("site.abm").members] == [True] * 16 + [False] * 2


def test_everything_that_can_be_said(folder: Path) -> None:
    numbers = {"faults": 1, "min_up": 2, "approvals": 3, "now_threshold": 1, "admin_threshold": 1, "stall_ok": "true", "heartbeat_s": 2}
    top = TOP + "".join(f"{name} = {value}\n" for name, value in numbers.items()) + "[groups]\npumps = 0\n"
    write("site.toml", top, nodes(4, 'groups = ["pumps", "hall-2"]\n').replace("[nodes.gw4]", "[nodes.gw4]\nindex = 200\nvoter = true"))
    init()
    found = read("site.abm")
    assert (found.faults, found.min_up, found.approvals, found.now_threshold, found.stall_ok, found.heartbeat_s) == (1, 2, 3, 1, True, 2)
    assert dict(found.groups) == {"pumps": 0, "hall-2": 3}
    assert [member.index for member in found.members] == [0, 1, 2, 200]
    assert found.voter_budget == 1
    out = call("fleet", "sign", "site.abm").out
    for text in ("plant-7, epoch 1", "f = 1 (1 may be malicious)", "Q = 3", "always up: 2 nodes, 3 of hall-2, 0 of pumps", "200  gw4"):
        assert text in out


def test_a_site_that_can_never_update_is_told_so(folder: Path) -> None:
    write("site.toml", TOP, "faults = 1\n", nodes(4))
    done = call("fleet", "init", "site.toml", "-o", "site.abm", "--key", "root1.pem")
    assert done.code == 0
    assert "no voter may ever go down" in done.out


def test_keys_and_thresholds_from_a_keyring(folder: Path) -> None:
    words = "keys keyring -o ring.abk --version 1 --root root1.pub --root root2.pub --root-threshold 2 --release root3.pub --sign root1.pem"
    ok(*words.split(), "--sign", "root2.pem", "--admin", "anna.pub", "--admin", "ben.pub", "--admin-threshold", "2")
    write("site.toml", 'site = "plant-7"\nkeyring = "ring.abk"\n', nodes(3))
    init()
    found = read("site.abm")
    assert (len(found.roots), found.root_threshold, len(found.admins), found.admin_threshold, found.now_threshold) == (2, 2, 2, 2, 2)


def test_a_keyring_without_admins(folder: Path) -> None:
    ok("keys", "keyring", "-o", "ring.abk", "--version", "1", "--root", "root1.pub", "--release", "root3.pub", "--sign", "root1.pem")
    write("site.toml", 'site = "plant-7"\nkeyring = "ring.abk"\n', nodes(3))
    bad(2, "no admin role", "fleet", "init", "site.toml", "-o", "site.abm")


def test_root_keys_in_different_hands(folder: Path) -> None:
    first = init(signers=("root1",))
    assert (first["complete"], first["signatures"]) == (False, [{"of": "root keys of epoch 1", "have": 1, "need": 2}])
    bad(3, "", "fleet", "init", "site.toml", "-o", "next.abm", "--previous", "site.abm")
    second = ok("fleet", "sign", "site.abm", "--key", "root2.pem")
    assert second["complete"] is True
    memberships.check_signed(read("site.abm"))
    bad(4, "already", "fleet", "sign", "site.abm", "--key", "root2.pem")


def test_signing_into_another_file_leaves_the_first(folder: Path) -> None:
    init(signers=("root1",))
    before = Path("site.abm").read_bytes()
    ok("fleet", "sign", "site.abm", "-o", "both.abm", "--key", "root2.pem")
    assert Path("site.abm").read_bytes() == before
    memberships.check_signed(read("both.abm"))


def test_without_a_key_a_file_is_shown_and_not_touched(folder: Path) -> None:
    init(signers=())
    before = Path("site.abm").read_bytes()
    document = ok("fleet", "sign", "site.abm")
    assert Path("site.abm").read_bytes() == before
    assert (document["complete"], document["signed_by"], document["members"][2]["key"]) == (False, [], node_key(3))
    bad(2, "nobody signs", "fleet", "sign", "site.abm", "-o", "other.abm")


def test_an_external_signer(folder: Path) -> None:
    Path("hsm").write_text(
        "import sys; from pathlib import Path; from abupdate.host.keys import load_private\n"
        "sys.stdout.buffer.write(load_private(Path('root2.pem')).sign(sys.stdin.buffer.read()))\n"
    )
    root = Path(__file__).resolve().parents[3]
    init(signers=("root1",))
    ok("fleet", "sign", "site.abm", "--key", "root2.pub", "--sign-with", f"env PYTHONPATH={root} {sys.executable} hsm")
    memberships.check_signed(read("site.abm"))
    assert keys.load_private(Path("root2.pem")).public.raw in {item.public_key for item in read("site.abm").signatures}


def test_strangers_do_not_sign(folder: Path) -> None:
    init(signers=("root1",))
    bad(2, "no root key", "fleet", "sign", "site.abm", "--key", "anna.pem")
    bad(2, "no root key", "fleet", "sign", "site.abm", "--key", "root3.pem")


def test_the_next_epoch_keeps_numbers_and_needs_both_thresholds(folder: Path) -> None:
    init()
    write("site.toml", TOP.replace('"root1.pub", ', "").replace("root_threshold = 2", "root_threshold = 1"), nodes(5).replace("gw2", "new"))
    document = init("--previous", "site.abm", signers=("root2",), output="next.abm")
    assert [(one["name"], one["index"]) for one in document["members"]] == [("gw1", 0), ("gw3", 2), ("gw4", 3), ("new", 4), ("gw5", 5)]
    assert [(row["of"], row["have"], row["need"]) for row in document["signatures"]] == [
        ("root keys of epoch 1", 1, 2),
        ("root keys of epoch 2", 1, 1),
    ]
    assert document["complete"] is False
    bad(2, "no root key", "fleet", "sign", "next.abm", "--key", "root1.pem")
    done = ok("fleet", "sign", "next.abm", "--previous", "site.abm", "--key", "root1.pem")
    assert done["complete"] is True
    old, new = read("site.abm"), read("next.abm")
    memberships.follows(old, new)
    assert (new.epoch, new.genesis) == (2, old.genesis)
    bad(2, "not the one before", "fleet", "sign", "site.abm", "--previous", "next.abm", "--key", "root1.pem")


def test_a_node_is_replaced_at_its_number(folder: Path) -> None:
    init()
    write("site.toml", TOP, nodes(4).replace(node_key(3), node_key(9)))
    init("--previous", "site.abm", output="next.abm")
    changed = read("next.abm").by_index[2]
    assert (changed.name, changed.key.hex()) == ("gw3", node_key(9))


def test_a_new_beginning_names_the_old_one(folder: Path) -> None:
    init()
    document = init("--recover", "site.abm", "--height", "40", "--lease", "gw2=17", output="anew.abm")
    old, new = read("site.abm"), read("anew.abm")
    memberships.check_signed(new)
    assert new.recovery is not None
    assert (new.epoch, new.genesis) == (1, new.digest)
    assert new.genesis != old.genesis
    assert (new.recovery.genesis, new.recovery.height, dict(new.recovery.leases)) == (old.genesis, 40, {1: 17})
    assert document["recovery"] == {"genesis": old.genesis.hex(), "height": 40, "leases": {"1": 17}}
    assert "node 1 holds 17" in call("fleet", "sign", "anew.abm").out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--recover", "site.abm"), "--height"),
        (("--height", "3"), "--recover"),
        (("--lease", "gw2=3"), "--recover"),
        (("--recover", "site.abm", "--previous", "site.abm"), "exclude"),
        (("--recover", "site.abm", "--height", "9", "--lease", "gw9=3"), "NODE=LEASE"),
        (("--recover", "site.abm", "--height", "9", "--lease", "gw2"), "NODE=LEASE"),
        (("--recover", "site.abm", "--height", "9", "--lease", "gw2=x"), "NODE=LEASE"),
        (("--recover", "site.abm", "--height", "9", "--lease", "gw2=10"), "height 9"),
        (("--recover", "site.abm", "--height", "9", "--lease", "gw2=0"), "between 1"),
        (("--recover", "site.abm", "--height", "9", "--lease", "gw2=3", "--lease", "gw2=4"), "twice"),
        (("--previous", "absent.abm"), "absent.abm"),
        (("--previous", "site.toml"), "membership"),
        (("--key", "anna.pem"), "no root key"),
    ],
)
def test_a_beginning_that_makes_no_sense(folder: Path, words: tuple[str, ...], text: str) -> None:
    init()
    code = 3 if words == ("--previous", "site.toml") else 2
    bad(code, text, "fleet", "init", "site.toml", "-o", "other.abm", *words)


BAD: dict[str, tuple[str, str]] = {
    "not TOML": ("site = plant", "not TOML"),
    "an unknown key": ("fault = 0\n", "fault"),
    "no site": (TOP.partition("\n")[2], "site is missing"),
    "no roots": ('site = "x"\nadmins = ["anna.pub"]\n', "no root keys"),
    "a keyring and roots": ('site = "x"\nkeyring = "r.abk"\nroots = ["root1.pub"]\n', "beside keyring"),
    "a root that is no key": ('site = "x"\nroots = ["site.toml"]\nadmins = ["anna.pub"]\n', "not a key"),
    "a threshold beyond": ('site = "x"\nroots = ["root1.pub"]\nadmins = ["anna.pub"]\nroot_threshold = 2\n', "threshold"),
    "more liars than a site bears": (TOP + "faults = 2\n", "site.toml"),
    "nobody may go down": (TOP + "min_up = 4\n", "site.toml"),
    "no approval": (TOP + "approvals = 0\n", "approvals"),
    "truth as a number": (TOP + "stall_ok = 1\n", "stall_ok"),
    "a group of nobody": (TOP + "[groups]\nvalves = 1\n", "valves"),
    "a group that is text": (TOP + "groups = 3\n", "groups"),
    "a heartbeat of nothing": (TOP + "heartbeat_s = 0\n", "heartbeat_s"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_site_that_is_wrong(folder: Path, case: str) -> None:
    top, text = BAD[case]
    write("site.toml", top, nodes(4))
    bad(2, text, "fleet", "init", "site.toml", "-o", "site.abm")


BAD_NODES: dict[str, tuple[str, str]] = {
    "none": ("", "no nodes"),
    "two": ("two", "site.toml"),
    "a node that is text": ("[nodes]\ngw1 = 3\n", "gw1"),
    "a node without a key": ("[nodes.gw1]\n", "key is missing"),
    "a key that is no file": ('[nodes.gw1]\nkey = "absent"\n', "absent"),
    "a key that holds a NUL": ('[nodes.gw1]\nkey = "a\\u0000"\n', "NUL"),
    "an unknown key of a node": ('[nodes.gw1]\nkey = "node1.pub"\nvotes = true\n', "votes"),
    "an index beyond": ('[nodes.gw1]\nkey = "node1.pub"\nindex = 255\n', "index"),
    "one index twice": ('[nodes.a]\nkey = "node1.pub"\nindex = 3\n[nodes.b]\nkey = "node2.pub"\nindex = 3\n', "index 3"),
    "a group twice": ('[nodes.a]\nkey = "node1.pub"\ngroups = ["x", "x"]\n', "twice"),
    "one key twice": ("same", "site.toml"),
}


@pytest.mark.parametrize("case", BAD_NODES)
def test_nodes_that_are_wrong(folder: Path, case: str) -> None:
    text, word = BAD_NODES[case]
    made = {"two": nodes(2), "same": nodes(4).replace(node_key(2), node_key(1))}
    write("site.toml", TOP, made.get(text, text))
    bad(2, word, "fleet", "init", "site.toml", "-o", "site.abm")


@pytest.mark.parametrize("data", [b"", b"abm", b"\x89ABK\r\n\x1a\n" + bytes(60)])
def test_what_is_neither_membership_nor_order(folder: Path, data: bytes) -> None:
    Path("thing").write_bytes(data)
    bad(3, "neither a membership nor an order", "fleet", "sign", "thing")
    Path("thing").write_bytes(bytes(1 << 20))
    bad(2, "too large", "fleet", "sign", "thing")


def test_a_damaged_membership_is_refused(folder: Path) -> None:
    init()
    good = Path("site.abm").read_bytes()
    for place in range(0, len(good), 7):
        Path("site.abm").write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        done = call("--json", "fleet", "sign", "site.abm", "--key", "root3.pem")
        assert done.code in (2, 3), place


def test_an_output_never_takes_the_place_of_an_input(folder: Path) -> None:
    init()
    bad(2, "take the place", "fleet", "init", "site.toml", "-o", "site.toml")
    bad(2, "take the place", "fleet", "init", "site.toml", "-o", "site.abm", "--previous", "site.abm")
    bad(2, "exists", "fleet", "init", "site.toml", "-o", "site.abm")
    bad(2, "take the place", "fleet", "sign", "site.abm", "-o", "root1.pem", "--key", "root1.pem")
