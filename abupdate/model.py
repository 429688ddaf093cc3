"""Frozen values that every part speaks in: slots, boot state, attempts, manifests, chunks. No behaviour beyond lookups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

# Of a bundle's security counter, and so of the floor.
MAX_COUNTER = 2**63 - 1


class SlotState(Enum):
    """What a slot is good for, as `status` reports it."""

    EMPTY = "empty"
    WRITING = "writing"
    WRITTEN = "written"
    TRIAL = "trial"
    CONFIRMED = "confirmed"
    BAD = "bad"


class Phase(Enum):
    """How far the last attempt to update a slot came, as the record knows it."""

    WRITING = "writing"
    WRITTEN = "written"
    ARMED = "armed"
    CONFIRMED = "confirmed"
    REVERTED = "reverted"
    CANCELLED = "cancelled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class TrialPolicy:
    """The numbers that the boot side needs and cannot read from the configuration.

    tries: boots of a slot on trial; budget: boots of a confirmed slot without a healthy userspace (0: not counted);
    boot_timeout_s: from the arming of the watchdog in the initramfs to the service.
    """

    tries: int = 3
    budget: int = 10
    boot_timeout_s: int = 120


@dataclass(frozen=True, slots=True)
class BootState:
    """What the bootloader's store says about the next boots.

    order: slots that may boot, first one first. left: boots that each slot has left, for every known slot.
    trial: the slot on trial or None. policy: None where the store holds none and its defaults hold.
    floor: mirror of the security counter's floor, None where the store has no room or no value.
    fresh: the store is valid but says nothing of order or trial (a board that abupdate never wrote to); a hook may have counted there.
    verity: dm-verity root hash in hex of each slot that has one, kept where the boot side hands it to the kernel.
    """

    order: tuple[str, ...]
    left: Mapping[str, int]
    trial: str | None = None
    policy: TrialPolicy | None = None
    floor: int | None = None
    fresh: bool = False
    verity: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BootTraits:
    """What a bootloader can do; what is asked beyond it is a configuration error.

    max_tries: most boots a trial may have. counts_confirmed: boots of confirmed slots are counted too.
    falls_through: a kernel that does not load ends on the next slot in the same boot.
    armed_in_store: that an armed trial was tried can be seen in the store; else arming does not outlive a power cut.
    keeps_verity: a slot's root hash can be kept where the boot side hands it to the kernel. max_confirmed: most boots that a confirmed
    slot may have, where they are counted.
    """

    max_tries: int
    counts_confirmed: bool
    falls_through: bool
    armed_in_store: bool
    keeps_verity: bool = False
    max_confirmed: int = 255


class Grade(Enum):
    """How bad a finding is. FAIL: an update would fail or could not be undone; WARN: it works, with a risk that is named."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of `doctor`; hint says what to do (empty: nothing)."""

    grade: Grade
    topic: str
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Repair:
    """What `doctor --fix` would do beside the boot state. text: shown before. run: does it; raises the errors of the CLI contract."""

    text: str
    run: Callable[[], None]


class ImageKind(Enum):
    """How an image is put on the device."""

    RAW = "raw"
    FILE = "file"
    TREE = "tree"
    CONTAINER = "container"
    AGENT = "agent"


class Codec(Enum):
    """How stored bytes are encoded."""

    NONE = "none"
    ZSTD = "zstd"


@dataclass(frozen=True, slots=True)
class Image:
    """One image of a bundle, as its manifest describes it.

    size_bytes: bytes on the slot. table_sha256: hash of the image's chunk table (32 bytes). table_bytes: length of that table.
    payload_bytes: stored bytes of all its chunks; offsets follow from the order of the images.
    verity_root: dm-verity root hash or None. sealed: its stored bytes are encrypted, as those of all images of the bundle are.
    """

    name: str
    kind: ImageKind
    size_bytes: int
    codec: Codec
    table_sha256: bytes
    table_bytes: int
    payload_bytes: int
    verity_root: bytes | None = None
    sealed: bool = False


@dataclass(frozen=True, slots=True)
class Recipient:
    """Who can open a sealed bundle. key_id: first 8 bytes of the SHA-256 of the raw X25519 public key.

    wrapped_key: the bundle's content key, encrypted for that key (48 bytes).
    """

    key_id: bytes
    wrapped_key: bytes


@dataclass(frozen=True, slots=True)
class Sealing:
    """For whom a bundle's payload is encrypted. seal_id: 32 random bytes. ephemeral: raw X25519 public key (32 bytes), one for all.

    recipients: in ascending order of their ids, each once.
    """

    seal_id: bytes
    ephemeral: bytes
    recipients: tuple[Recipient, ...]


@dataclass(frozen=True, slots=True)
class Manifest:
    """What the release key signs. bundle_id is SHA-256 over the manifest's bytes (32 bytes). sealing: None for a plain payload."""

    bundle_id: bytes
    compatible: str
    hardware_revisions: tuple[str, ...]
    version: str
    security_counter: int
    min_updater: str
    build_time: int
    description: str
    flags: frozenset[str]
    images: tuple[Image, ...]
    sealing: Sealing | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an image.

    offset/size: where it lies on the slot, bytes. sha256: of the bytes on the slot. probe: first 8 bytes of the SHA-256 of
    the chunk's first 4096 bytes (or all of it when shorter): a cheap way to see that a slot does NOT hold the chunk.
    stored_offset (from the start of the image's payload)/stored_size/stored_sha256: the encoded bytes.
    zero: the chunk is all zeros and stored as nothing (stored_size 0). raw: stored as it is although the image is encoded.
    """

    offset: int
    size: int
    sha256: bytes
    probe: bytes
    stored_offset: int
    stored_size: int
    stored_sha256: bytes
    zero: bool
    raw: bool


class RoleName(Enum):
    """What the keys of a role may sign."""

    ROOT = "root"
    RELEASE = "release"
    SECURITY = "security"
    ADMIN = "admin"


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A raw Ed25519 public key (32 bytes). test: made for tests; a device refuses it unless it is told otherwise."""

    raw: bytes
    test: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    """A signature (64 bytes) and the raw public key (32 bytes) that it claims to be by; nothing is verified yet."""

    public_key: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Role:
    """The keys of a role, in ascending order, and how many distinct ones must sign."""

    name: RoleName
    threshold: int
    keys: tuple[PublicKey, ...]


@dataclass(frozen=True, slots=True)
class Keyring:
    """Who may sign what. body: the exact bytes that the root keys sign. Roles that are not there accept nothing."""

    version: int
    roles: Mapping[RoleName, Role]
    signatures: tuple[Signature, ...]
    body: bytes


@dataclass(frozen=True, slots=True)
class Approval:
    """Why a bundle is accepted: the role whose threshold was met, and the distinct keys of that role that signed."""

    role: RoleName
    keys: tuple[PublicKey, ...]


class KeyringSource(Enum):
    """Where the keyring that counts lies: in the slot (`[trust] keyring`) or, newer than that one, in `state_dir`."""

    FACTORY = "factory"
    STATE_DIR = "state_dir"


@dataclass(frozen=True, slots=True)
class RecalledKeyrings:
    """What counts of a kept chain. rings: the versions that are newer than the slot's own and follow from it, in order.

    used: the bytes up to the last of them. fault: empty, or what is wrong behind those.
    """

    rings: tuple[Keyring, ...]
    used: bytes
    fault: str = ""


@dataclass(frozen=True, slots=True)
class EffectiveKeyring:
    """The keyring that this device holds bundles against. note: empty, or why a stored one was passed over, or a part of it."""

    ring: Keyring
    source: KeyringSource
    note: str = ""


@dataclass(frozen=True, slots=True)
class SaveKeyring:
    """Durable step: keep the next version of the keyring. data: the chain that ends with it, `ring` as it was decoded and verified."""

    ring: Keyring
    data: bytes


@dataclass(frozen=True, slots=True)
class SlotRecord:
    """What the record remembers of a slot's content. bundle: bundle id in hex, empty when unknown. extra: as in Record.

    verity: dm-verity root hash in hex from the signed manifest, empty where there is none.
    """

    state: SlotState
    version: str = ""
    bundle: str = ""
    counter: int = 0
    extra: Mapping[str, object] = field(default_factory=dict)
    verity: str = ""


@dataclass(frozen=True, slots=True)
class Attempt:
    """The last attempt to change what boots: its target slot, how far it came, in which boot, and why it ended.

    boot_id: the kernel's boot id in which the attempt was last worked on by hand (flash, activate, revert). previous: the slot that
    was confirmed when the attempt began. lease: the fleet's update slot, None on a lone device. extra: fields of a newer version, kept.
    starts: boots on trial that reached the service, the last of them with the boot id `started_in`: a store that could not count them
    must not let a trial go on for ever.
    """

    slot: str
    phase: Phase
    boot_id: str
    bundle: str = ""
    version: str = ""
    counter: int = 0
    previous: str = ""
    lease: int | None = None
    reason: str = ""
    extra: Mapping[str, object] = field(default_factory=dict)
    starts: int = 0
    started_in: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """The explaining record in `state_dir`. floor: highest security counter ever confirmed.

    store: location of the boot store that was last seen valid, empty when never. extra: fields of a newer version, kept.
    """

    floor: int = 0
    slots: Mapping[str, SlotRecord] = field(default_factory=dict)
    attempt: Attempt | None = None
    store: str = ""
    extra: Mapping[str, object] = field(default_factory=dict)


class Situation(Enum):
    """Where the device stands, derived from facts alone (the ordered table in machine.py)."""

    UNREADABLE = "unreadable"
    ON_TRIAL = "on-trial"
    ARMED = "armed"
    FELL_BACK = "fell-back"
    UNKNOWN = "unknown"
    REBOOT_PENDING = "reboot-pending"
    FELL_THROUGH = "fell-through"
    STEADY = "steady"


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything `decide` may look at, sampled once.

    slots: the configured slots. booted: the slot that runs. boot_id: the kernel's id of this boot. boot: the store's state, None when it
    is unreadable. store: the store's location. record: None when lost. policy: the configured numbers. heads: what the stored bundle
    heads say of each slot's content, for a record that is lost. unsaved: the boot side could not write its counter.
    settled: the service has already dealt with this boot's outcome.
    reset: how the previous boot ended as far as the platform tells ("watchdog", "panic" or ""). witnessed: highest floor that any copy
    of the record shows, even one that this version cannot read. replaceable: the store could be rebuilt without losing what the
    bootloader itself needs. outside: floor in the copy outside (a TPM), 0 where it is empty or does not answer, None where there is none
    or nobody asked. forgetful: what is armed is not in the store alone, so a boot that nobody meant to be the trial does not end it.
    tried: the boot side says that this boot was the try.
    """

    slots: tuple[str, ...]
    booted: str
    boot_id: str
    boot: BootState | None
    store: str
    record: Record | None
    policy: TrialPolicy
    heads: Mapping[str, SlotRecord] = field(default_factory=dict)
    unsaved: bool = False
    settled: bool = False
    reset: str = ""
    witnessed: int = 0
    replaceable: bool = True
    outside: int | None = None
    forgetful: bool = False
    tried: bool = False


@dataclass(frozen=True, slots=True)
class CommitBoot:
    """Durable step: write this state to the bootloader's store."""

    state: BootState
    why: str


@dataclass(frozen=True, slots=True)
class RebuildBoot:
    """Durable step: write an unreadable store anew."""

    state: BootState
    why: str


@dataclass(frozen=True, slots=True)
class SaveRecord:
    """Durable step: replace the record."""

    record: Record
    why: str


@dataclass(frozen=True, slots=True)
class SaveHead:
    """Durable step: keep the bundle's head (manifest, signatures, chunk tables) of the slot that is about to be written."""

    slot: str


@dataclass(frozen=True, slots=True)
class WriteSlot:
    """Durable step: write the images to the slot and flush."""

    slot: str


@dataclass(frozen=True, slots=True)
class ReadBack:
    """Step: read the slot from the medium and verify it."""

    slot: str


@dataclass(frozen=True, slots=True)
class RaiseFloor:
    """Durable step, as far as it can be done: the floor's copy outside keeps at least this counter."""

    counter: int


Step = CommitBoot | RebuildBoot | SaveRecord | SaveHead | WriteSlot | ReadBack | RaiseFloor


class Verdict(Enum):
    """What the service does about a trial now."""

    WAIT = "wait"
    CONFIRM = "confirm"
    REVERT = "revert"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and, for people and the record, why; empty while waiting in health."""

    verdict: Verdict
    reason: str = ""
