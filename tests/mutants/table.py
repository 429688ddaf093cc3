"""The table of mutants: one bug each, put into the code that keeps a device alive or strangers out.

An entry names the file, text that occurs in it exactly once, what stands there instead, what that breaks, and the test files that should
notice. Mutants that only the crash simulator can see are in tests/sim.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Mutant:
    """A bug. killers: test files (or tests in them) of the quick part that are run first."""

    name: str
    file: str
    old: str
    new: str
    breaks: str
    killers: tuple[str, ...]


_UNIT = "tests/unit"
_STATE = (f"{_UNIT}/test_statedir.py",)
_DURABLE = (f"{_UNIT}/test_durable.py",)
_SLOTS = (f"{_UNIT}/transfer/test_slots.py",)
_ADMISSION = (f"{_UNIT}/transfer/test_admission.py",)
_BOOT = (f"{_UNIT}/test_thisboot.py",)
_RECORD = ("tests/unit/test_record.py",)
_MACHINE = (f"{_UNIT}/test_machine.py",)
_OPERATIONS = (f"{_UNIT}/test_operations.py",)
_REFUSED = (f"{_UNIT}/test_cli_refused.py",)
_UPDATE = (f"{_UNIT}/test_cli_update.py",)
_KEYRING = ("tests/formats/test_keyring.py",)
_SIGNATURE = ("tests/formats/test_signature.py",)
_BUNDLE = ("tests/formats/test_bundle.py",)
_DECODE = ("tests/formats/test_decode.py",)
_INSTALL = (f"{_UNIT}/transfer/test_install.py",)
_BLOCK = (f"{_UNIT}/transfer/test_block.py",)
_UBOOT = (f"{_UNIT}/test_uboot_store.py", f"{_UNIT}/test_uboot_flash.py")
_WATCHDOG = (f"{_UNIT}/test_watchdog.py",)
_SERVICE = (f"{_UNIT}/test_service.py",)
_MONITOR = (f"{_UNIT}/test_monitor.py",)
_CHECKS = (f"{_UNIT}/test_checks.py",)
_CONFIG = (f"{_UNIT}/test_config.py",)
_SIM = ("tests/sim/test_crash.py",)

MUTANTS: tuple[Mutant, ...] = (
    # -- what lies in state_dir is durable, locked, and survives strangers
    Mutant(
        "record: no fsync before the rename",
        "abupdate/devices/durable.py",
        "            files.fsync(descriptor)\n        finally:\n            files.close(descriptor)\n        files.rename",
        "        finally:\n            files.close(descriptor)\n        files.rename",
        "after a cut the new name shows an empty file",
        _DURABLE,
    ),
    Mutant(
        "record: folder not flushed after the rename",
        "abupdate/devices/durable.py",
        "        raise\n    sync_folder(path.parent, files)\n",
        "        raise\n",
        "after a cut the old record is back, although a later step was done",
        _DURABLE,
    ),
    Mutant(
        "state_dir: made without flushing its parent",
        "abupdate/devices/durable.py",
        "    # Without this the new folder can be gone after a power cut, with everything that was flushed inside it.\n"
        "    sync_folder(path.parent, files)\n",
        "",
        "the whole folder is gone after a cut",
        _DURABLE,
    ),
    Mutant(
        "lock: not taken",
        "abupdate/devices/statedir.py",
        "                self._files.flock(descriptor)\n                return\n",
        "                return\n",
        "two verbs work at once",
        _STATE,
    ),
    Mutant(
        "record: one copy only",
        "abupdate/devices/statedir.py",
        "            for name in _COPIES:\n                self._keep_unknown(name)",
        "            for name in _COPIES[:1]:\n                self._keep_unknown(name)",
        "a sector that goes bad loses the record and the floor",
        _STATE,
    ),
    Mutant(
        "record: the older of two copies counts",
        "abupdate/devices/statedir.py",
        "return max(found, key=lambda pair: pair[0])[1], floor",
        "return min(found, key=lambda pair: pair[0])[1], floor",
        "a cut between the copies takes the device back in time",
        _STATE,
    ),
    Mutant(
        "record: another version's is overwritten",
        "abupdate/devices/statedir.py",
        "                self._keep_unknown(name)\n",
        "",
        "the agent that wrote it finds nothing when it comes back",
        _STATE,
    ),
    Mutant(
        "floor: that of another version's record is ignored",
        "abupdate/devices/statedir.py",
        "                floor = max(floor, newer.floor)",
        "                floor = max(floor, 0)",
        "an old agent installs what a newer one has outgrown",
        _STATE,
    ),
    Mutant(
        "record: checksum not looked at",
        "abupdate/formats/record.py",
        "!= zlib.crc32(data[: -_CRC.size]):",
        "== -1:",
        "flipped bits are believed",
        _RECORD,
    ),
    Mutant(
        "record: fields of a newer version are dropped",
        "abupdate/formats/record.py",
        '        extra=_extra(body, ("floor", "slots", "attempt", "store")),\n',
        "",
        "an older agent destroys what the newer one remembers",
        _RECORD,
    ),
    # -- the order of durable steps
    Mutant(
        "flash: the target stays bootable while it is written",
        "abupdate/machine.py",
        '        *steps,\n        SaveHead(slot),\n        SaveRecord(writing, f"writing slot {slot}"),\n        WriteSlot(slot),\n',
        '        SaveHead(slot),\n        SaveRecord(writing, f"writing slot {slot}"),\n        WriteSlot(slot),\n        *steps,\n',
        "a cut while writing leaves half a slot in the boot order",
        _MACHINE,
    ),
    Mutant(
        "flash: not read back",
        "abupdate/machine.py",
        "        WriteSlot(slot),\n        ReadBack(slot),\n",
        "        WriteSlot(slot),\n",
        "a medium that loses writes is armed",
        _MACHINE,
    ),
    Mutant(
        "flash: `written` recorded before the read-back",
        "abupdate/machine.py",
        '        ReadBack(slot),\n        SaveRecord(written, f"slot {slot} is written and verified"),\n',
        '        SaveRecord(written, f"slot {slot} is written and verified"),\n        ReadBack(slot),\n',
        "after a cut `activate` finds a slot that nobody has verified",
        _MACHINE,
    ),
    Mutant(
        "arm: `armed` recorded before the store",
        "abupdate/machine.py",
        '    return (CommitBoot(state, f"slot {slot} boots next, on trial"), SaveRecord(armed, f"slot {slot} is armed"))',
        '    return (SaveRecord(armed, f"slot {slot} is armed"), CommitBoot(state, f"slot {slot} boots next, on trial"))',
        "a cut between shows an attempt that reverted although it never began",
        _MACHINE,
    ),
    Mutant(
        "arm: one try too many",
        "abupdate/machine.py",
        "slot: facts.policy.tries}",
        "slot: facts.policy.tries + 1}",
        "a slot that hangs keeps the device longer than it was told",
        _MACHINE,
    ),
    Mutant(
        "arm: the trial is written as confirmed",
        "abupdate/machine.py",
        "left, trial=slot, policy=facts.policy, floor=boot.floor)",
        "left, trial=None, policy=facts.policy, floor=boot.floor)",
        "no trial at all: a slot that does not come up is never left",
        _MACHINE,
    ),
    Mutant(
        "arm: the previous slot is not behind the trial",
        "abupdate/machine.py",
        "state = BootState((slot, facts.booted, *rest),",
        "state = BootState((slot, *rest),",
        "nothing to fall back to",
        _MACHINE,
    ),
    Mutant(
        "activate: not read back",
        "abupdate/machine.py",
        "[] if request.verified else [ReadBack(slot)]",
        "[]",
        "what rotted since it was written is armed",
        _MACHINE,
    ),
    Mutant(
        "confirm: record before store",
        "abupdate/machine.py",
        '    return (CommitBoot(state, f"slot {booted} is confirmed"), SaveRecord(record, f"slot {booted} is confirmed"))',
        '    return (SaveRecord(record, f"slot {booted} is confirmed"), CommitBoot(state, f"slot {booted} is confirmed"))',
        "after a cut the record says confirmed and the slot falls back",
        _MACHINE,
    ),
    Mutant(
        "confirm: the boots are not refilled",
        "abupdate/machine.py",
        "    left = {**boot.left, booted: _full(facts)}\n    order",
        "    left = {**boot.left}\n    order",
        "a confirmed slot goes on with the boots that its trial left",
        _MACHINE,
    ),
    Mutant(
        "service: the tries of a trial are refilled",
        "abupdate/machine.py",
        "    if where is not Situation.ON_TRIAL and facts.booted in boot.order",
        "    if facts.booted in boot.order",
        "a trial that crashes after its service started never ends",
        _MACHINE,
    ),
    Mutant(
        "rebuild: any store, not only one seen before",
        "abupdate/machine.py",
        "if record is None or not facts.store or record.store != facts.store:",
        "if record is None or not facts.store:",
        "a wrong fw_env.config overwrites somebody else's data",
        _MACHINE,
    ),
    Mutant(
        "fallback: the store is cleaned before the reason is recorded",
        "abupdate/machine.py",
        '        steps.append(SaveRecord(after, f"slot {slot} fell back: {done.reason}"))\n'
        '    steps.append(CommitBoot(_without(boot, slot, facts.booted, _full(facts)), f"take slot {slot} out after its fallback"))\n',
        '        steps.append(SaveRecord(after, f"slot {slot} fell back: {done.reason}"))\n'
        '    steps.insert(0, CommitBoot(_without(boot, slot, facts.booted, _full(facts)), f"take slot {slot} out after its fallback"))\n',
        "a cut between loses why the trial ended",
        _MACHINE,
    ),
    # -- no way back below what was confirmed
    Mutant(
        "floor: does not rise at confirm",
        "abupdate/machine.py",
        "    risen = max(floor(facts), counter)",
        "    risen = floor(facts)",
        "an old signed bundle with known holes is installed again",
        _MACHINE,
    ),
    Mutant(
        "flash: one below the floor passes",
        "abupdate/operations/flash.py",
        "    if counter < floor:",
        "    if counter < floor - 1:",
        "the last fixed hole can be opened again",
        (*_OPERATIONS, *_REFUSED),
    ),
    Mutant(
        "flash: a bundle at the floor is refused",
        "abupdate/operations/flash.py",
        "    if counter < floor:",
        "    if counter <= floor:",
        "no update without a new security counter",
        (*_OPERATIONS, *_UPDATE),
    ),
    Mutant(
        "revert: one below the floor passes",
        "abupdate/machine.py",
        "    if counter is not None and counter < lowest:",
        "    if counter is not None and counter < lowest - 1:",
        "an ordered way back to a slot with known holes",
        _MACHINE,
    ),
    # -- operations
    Mutant(
        "commit: the store is not read back",
        "abupdate/operations/board.py",
        "                board.store.commit(step.state)\n                _check_store(board, step.state)\n",
        "                board.store.commit(step.state)\n",
        "`confirmed` is said although the store does not show it",
        _OPERATIONS,
    ),
    Mutant(
        "flash: without the lock",
        "abupdate/operations/flash.py",
        'running slot is first and good, and the target cannot boot where anything was written.\n    """\n'
        "    with board.state.lock(LOCK_WAIT_S):",
        'running slot is first and good, and the target cannot boot where anything was written.\n    """\n    if True:',
        "two of them write one slot",
        _OPERATIONS,
    ),
    Mutant(
        "confirm: without the lock",
        "abupdate/operations/verdict.py",
        "    with board.state.lock(wait_s):\n        facts = carry_out",
        "    if True:\n        facts = carry_out",
        "a confirm in the middle of a flash",
        _OPERATIONS,
    ),
    Mutant(
        "activate: any stored manifest will do",
        "abupdate/operations/flash.py",
        "if check_head(head) != known.bundle:",
        'if check_head(head) == "":',
        "a manifest of another bundle vouches for the slot",
        _OPERATIONS,
    ),
    Mutant(
        "flash: images that the slot has no place for",
        "abupdate/operations/flash.py",
        "            contents.fits(slot, manifest)\n",
        "",
        "a slot that misses an image is armed",
        _REFUSED,
    ),
    # -- signatures and trust
    Mutant(
        "compatible: a prefix is enough",
        "abupdate/transfer/admission.py",
        "manifest.compatible != device.compatible",
        "not manifest.compatible.startswith(device.compatible)",
        "the bundle of acme-2 on an acme",
        _REFUSED,
    ),
    Mutant(
        "hardware revision: not compared",
        "abupdate/transfer/admission.py",
        "if revisions and device.hardware_revision not in revisions:",
        "if revisions and not device.hardware_revision:",
        "a kernel for other hardware",
        _REFUSED,
    ),
    Mutant(
        "min_updater: compared as text",
        "abupdate/transfer/admission.py",
        "_parts(device.updater) < _parts(manifest.min_updater):",
        "device.updater < manifest.min_updater:",
        "0.10 counts as older than 0.9",
        _ADMISSION,
    ),
    Mutant(
        "bundle: one signature less than the threshold",
        "abupdate/formats/keyring.py",
        "        if len(keys) >= role.threshold:",
        "        if len(keys) >= role.threshold - 1:",
        "one stolen key is enough where two are asked for",
        _KEYRING,
    ),
    Mutant(
        "bundle: the threshold counts signatures",
        "abupdate/formats/keyring.py",
        "        if len(keys) >= role.threshold:",
        "        if keys and len(listed) >= role.threshold:",
        "strangers' signatures help one release key over the threshold",
        _KEYRING,
    ),
    Mutant(
        "bundle: the security role signs everything",
        "abupdate/formats/keyring.py",
        " if SECURITY_FIX in manifest.flags else (RoleName.RELEASE,)",
        "",
        "a security key signs features",
        _KEYRING,
    ),
    Mutant(
        "keyring: any root key is enough",
        "abupdate/formats/keyring.py",
        "    if count < needed:",
        "    if count < 1:",
        "one stolen root key makes a keyring",
        _KEYRING,
    ),
    Mutant(
        "keyring: test keys pass",
        "abupdate/formats/keyring.py",
        "        if key.test and not allowed:",
        "        if key.test and allowed is None:",
        "everybody has the private half",
        _KEYRING,
    ),
    Mutant(
        "keyring: not checked on the device",
        "abupdate/wiring.py",
        "        rings.check_self_signed(ring)\n",
        "",
        "a keyring that nobody signed decides who may sign",
        _CONFIG,
    ),
    Mutant(
        "signature: not verified",
        "abupdate/formats/signature.py",
        "        if not verify(signature.public_key, signature.value, signed):",
        "        if not signature.value:",
        "anybody signs",
        _SIGNATURE,
    ),
    Mutant(
        "signature: R of small order",
        "abupdate/formats/signature.py",
        "if not _is_safe_point(public_key) or not _is_safe_point(signature[:32]):",
        "if not _is_safe_point(public_key):",
        "signatures that OpenSSL takes for many messages",
        _SIGNATURE,
    ),
    Mutant(
        "signature: keys of small order",
        "abupdate/formats/signature.py",
        "if not _is_safe_point(public_key) or not _is_safe_point(signature[:32]):",
        "if not _is_safe_point(signature[:32]):",
        "a key under which everything verifies",
        _SIGNATURE,
    ),
    Mutant(
        "signature: kinds of objects are mixed up",
        "abupdate/formats/signature.py",
        "    return domain.value + hashlib.sha256(data).digest()",
        "    return Domain.BUNDLE.value + hashlib.sha256(data).digest()",
        "the signature of one kind of object serves for another",
        (*_SIGNATURE, "tests/formats/test_golden.py"),
    ),
    # -- from the bundle to the slot
    Mutant(
        "bundle: chunk tables are not checked",
        "abupdate/formats/bundle.py",
        "        if hashlib.sha256(table).digest() != image.table_sha256:",
        "        if not table:",
        "an unsigned table decides what is written",
        _BUNDLE,
    ),
    Mutant(
        "bundle: bytes behind the end of the file",
        "abupdate/formats/bundle.py",
        "if size_bytes is not None and size_bytes != header.total_bytes:",
        "if size_bytes is not None and size_bytes < header.total_bytes:",
        "something rides along that nobody signed",
        _BUNDLE,
    ),
    Mutant(
        "chunk: stored bytes are decoded unverified",
        "abupdate/formats/codec.py",
        "        self.verify(chunk, stored)\n        if chunk.raw",
        "        if chunk.raw",
        "the decoder sees bytes that nobody signed",
        _DECODE,
    ),
    Mutant(
        "chunk: decoded bytes are not hashed",
        "abupdate/formats/codec.py",
        "        if not hmac.compare_digest(hashlib.sha256(out).digest(), chunk.sha256):",
        "        if not chunk.sha256:",
        "what is written is not what the table says",
        _DECODE,
    ),
    Mutant(
        "chunk: any window",
        "abupdate/formats/codec.py",
        "    if frame.window_size > MAX_WINDOW_BYTES:",
        "    if frame.window_size < 0:",
        "a small bundle takes all memory",
        _DECODE,
    ),
    Mutant(
        "install: the probe alone says that a chunk is there",
        "abupdate/transfer/install.py",
        "        read_whole(self.target, view, chunk.offset)\n        return matches(view, chunk.sha256)",
        "        return True",
        "old bytes stay behind an unchanged first block",
        _INSTALL,
    ),
    Mutant(
        "install: a stream's unneeded bytes are not verified",
        "abupdate/transfer/install.py",
        "                if there:\n                    buffers.decoder.verify(chunk, view)\n",
        "                pass\n",
        "a damaged stream is called fine",
        _INSTALL,
    ),
    Mutant(
        "read-back: data is not compared",
        "abupdate/transfer/verify.py",
        "            if not matches(buffers.slot[chunk.offset - batch.offset :][: chunk.size], chunk.sha256):",
        "            if not chunk.sha256:",
        "`verified` is said of anything",
        _INSTALL,
    ),
    Mutant(
        "read-back: zeros are not compared",
        "abupdate/transfer/verify.py",
        "            if not buffers.is_zero(buffers.slot[:length]):",
        "            if not length:",
        "old bytes where the image has zeros",
        _INSTALL,
    ),
    Mutant(
        "slot: not flushed after it is written",
        "abupdate/transfer/slots.py",
        "        for target in targets.values():\n            target.flush()\n",
        "",
        "`written` is recorded while the data is in a cache",
        _SLOTS,
    ),
    Mutant(
        "slot: the flush does not reach the medium",
        "abupdate/devices/block.py",
        "                os.fsync(descriptor)\n                if descriptor == self._buffered_fd:",
        "                if descriptor == self._buffered_fd:",
        "the same, inside the device",
        _BLOCK,
    ),
    Mutant(
        "slot: the stored manifest's signatures are not checked",
        "abupdate/transfer/slots.py",
        "        self._sealed(parsed.signed)\n",
        "",
        "whoever writes state_dir decides what `verify` calls right",
        _REFUSED,
    ),
    Mutant(
        "stream: bytes behind its end",
        "abupdate/transfer/slots.py",
        "        _expect_end(bundle.source)\n",
        "",
        "something rides along that nobody signed",
        (*_REFUSED, *_UPDATE),
    ),
    Mutant(
        "slot: written while it is mounted",
        "abupdate/devices/block.py",
        "    if use := explain_use(identity):\n"
        '        raise Busy(f"{path} is {use}", "a slot must be unused while it is written")\n\n\ndef _refusal',
        "    pass\n\n\ndef _refusal",
        "a running file system is overwritten",
        _BLOCK,
    ),
    Mutant(
        "slot: a file without its lock",
        "abupdate/devices/block.py",
        "            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)\n",
        "            pass\n",
        "two writers of one image file",
        _BLOCK,
    ),
    # -- the boot store
    Mutant(
        "environment: the copy that counts is overwritten",
        "abupdate/bootloaders/uboot.py",
        "    target = 1 - loaded.current if len(loaded.areas) == 2 else 0",
        "    target = loaded.current if len(loaded.areas) == 2 else 0",
        "a cut in the write leaves the older state, or none",
        _UBOOT,
    ),
    Mutant(
        "environment: not read back",
        "abupdate/bootloaders/envfile.py",
        "            compare(read_exactly(fd, start, self.location, calls=self.calls), data, self.location)\n",
        "",
        "a medium that loses writes is believed",
        _UBOOT,
    ),
    Mutant(
        "environment: not flushed",
        "abupdate/bootloaders/envfile.py",
        "                self.calls.fsync(fd)\n",
        "",
        "the order of what a cut leaves is the device's",
        _UBOOT,
    ),
    Mutant(
        "environment: read back from the cache",
        "abupdate/bootloaders/envfile.py",
        "                self.calls.forget(fd, first, start - first + len(data) + mmap.PAGESIZE)\n",
        "",
        "the comparison sees what was meant, not what is there",
        _UBOOT,
    ),
    Mutant(
        "environment: its lock is only shared",
        "abupdate/bootloaders/uboot.py",
        "        with self._locked(writing=True):\n            self._update(self._valid(self._load()), state)",
        "        with self._locked(writing=False):\n            self._update(self._valid(self._load()), state)",
        "a fw_setenv at the same time undoes the commit",
        _UBOOT,
    ),
    Mutant(
        "environment: counters are decimal",
        "abupdate/bootloaders/ubootvars.py",
        '    return b"%x" % number',
        '    return b"%d" % number',
        "ten boots become sixteen",
        _UBOOT,
    ),
    Mutant(
        "environment: flag 255 beats 0",
        "abupdate/formats/ubootenv.py",
        "        return 0 if first == 0 else 1\n",
        "        return 1 if first == 0 else 0\n",
        "after 256 writes the older copy counts",
        ("tests/formats/test_ubootenv.py",),
    ),
    Mutant(
        "environment: a single copy is flashed over",
        "abupdate/wiring.py",
        "if store.single and not settings.bootloader.allow_single_env else",
        "if store.single and settings.bootloader.allow_single_env else",
        "a cut in the commit loses the whole environment",
        (*_REFUSED, *_CONFIG),
    ),
    # -- the trial
    Mutant(
        "watchdog: closed with V",
        "abupdate/devices/watchdog.py",
        '            os.write(self._fd, b"\\0")',
        '            os.write(self._fd, b"V")',
        "the hardware stops at every hand-over: a hang is never ended",
        _WATCHDOG,
    ),
    Mutant(
        "watchdog: a driver that only says that it stopped",
        "abupdate/devices/watchdog.py",
        "        if result != 0:",
        "        if result < 0:",
        "a locked i6300esb resets a confirmed device",
        _WATCHDOG,
    ),
    Mutant(
        "watchdog: stopped, whatever sysfs says",
        "abupdate/devices/watchdog.py",
        '        if state != "inactive":',
        '        if state == "unknown":',
        "the same with a driver that returns 0",
        _WATCHDOG,
    ),
    Mutant(
        "watchdog: not handed over before a reboot",
        "abupdate/operations/service.py",
        "                self._watchdog.hand_over()\n            self._watchdog = None\n",
        "                self._watchdog.disarm()\n            self._watchdog = None\n",
        "a shutdown that hangs never ends",
        _SERVICE,
    ),
    Mutant(
        "window: by the wall clock",
        "abupdate/devices/thisboot.py",
        "        return time.clock_gettime(time.CLOCK_BOOTTIME)",
        "        return time.clock_gettime(time.CLOCK_REALTIME)",
        "a clock that is set ends the window at once",
        _BOOT,
    ),
    Mutant(
        "window: confirmed without being asked to",
        "abupdate/health/monitor.py",
        "        if not limits.auto_confirm:",
        "        if limits.auto_confirm is None:",
        "a slot that nobody looked at is kept",
        _MONITOR,
    ),
    Mutant(
        "health: degraded to the second",
        "abupdate/health/monitor.py",
        "            if row_s > limits.degraded_row_s:",
        "            if row_s >= limits.degraded_row_s:",
        "a slot goes back at its limit instead of beyond it",
        _MONITOR,
    ),
    Mutant(
        "health: an unknown exit code is no worse than degraded",
        "abupdate/health/checks.py",
        '        return CheckResult(running.path.name, Health.CRITICAL, f"{end}: {said}" if said else end, duration_s)',
        '        return CheckResult(running.path.name, Health.DEGRADED, f"{end}: {said}" if said else end, duration_s)',
        "a health program that crashes is taken for a passing weakness",
        _CHECKS,
    ),
    Mutant(
        "health: children of a program live on",
        "abupdate/health/checks.py",
        "            _signal_group(running, signal.SIGKILL)\n            code = running.process.wait()",
        "            code = running.process.wait()",
        "every round leaves processes behind",
        _CHECKS,
    ),
    # -- the device around it
    Mutant(
        "modes: what the group can write is trusted",
        "abupdate/config.py",
        "    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):",
        "    if info.st_mode & stat.S_IWOTH:",
        "a member of the group chooses the keyring",
        _CONFIG,
    ),
    Mutant(
        "owners: anybody's file is trusted",
        "abupdate/config.py",
        "    if info.st_uid not in (0, os.geteuid()):",
        "    if info.st_uid < 0:",
        "its owner chooses the keyring",
        _CONFIG,
    ),
    Mutant(
        "state_dir: on a slot",
        "abupdate/wiring.py",
        "        if usage.lies_on(state, path):",
        "        if not name:",
        "the next update overwrites the record",
        _CONFIG,
    ),
)
