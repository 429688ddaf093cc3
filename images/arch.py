"""What differs between the architectures that test devices are built for."""

from __future__ import annotations

from dataclasses import dataclass

# Of every architecture's root file system.
COMMON = (
    "libc6",
    "libcrypt1",
    "libgcc-s1",
    "zlib1g",
    "libexpat1",
    "libffi8",
    "libbz2-1.0",
    "liblzma5",
    "libssl3",
    "python3.11-minimal",
    "libpython3.11-minimal",
    "libpython3.11-stdlib",
)
# The EFI system partition and the firmware's variables.
ESP_MODULES = ("nls_cp437", "nls_ascii", "nls_iso8859-1", "nls_utf8", "vfat", "efivarfs")
E2FSPROGS = ("e2fsprogs", "libext2fs2", "libss2", "libcom-err2", "libblkid1", "libuuid1")


@dataclass(frozen=True)
class Arch:
    """One architecture. debian: its name there. prefix: of the names of its build steps. triplet: of its tool chain.

    kernel: the package that depends on the newest kernel. system: packages of the root file system. disk_modules: loaded by the
    initramfs in this order, with what they depend on, after the watchdog's. spare_modules: only carried along, for the root file
    system. wheel_platforms: what pip takes wheels for. console: the kernel's name of the serial line.
    """

    debian: str
    prefix: str
    triplet: str
    kernel: str
    system: tuple[str, ...]
    disk_modules: tuple[str, ...]
    spare_modules: tuple[str, ...]
    wheel_platforms: tuple[str, ...]
    console: str


ARM64 = Arch(
    debian="arm64",
    prefix="",
    triplet="aarch64-linux-gnu",
    kernel="linux-image-arm64",
    system=(*COMMON, "libubootenv-tool", "libubootenv0.1", "libyaml-0-2", *E2FSPROGS),
    # The SD card first: it takes a while to be found, and nothing waits for it.
    disk_modules=("sdhci-pci", "mmc_block", "virtio_mmio", "virtio_pci", "virtio_blk", "crc32c_generic", "ext4"),
    spare_modules=("softdog", "virtio_net", "virtio_console", *ESP_MODULES),
    wheel_platforms=("manylinux2014_aarch64", "manylinux_2_28_aarch64", "manylinux_2_34_aarch64"),
    console="ttyAMA0",
)
AMD64 = Arch(
    debian="amd64",
    prefix="x86-",
    triplet="x86_64-linux-gnu",
    kernel="linux-image-amd64",  # the cloud kernel has no driver of the watchdog i6300esb
    system=(*COMMON, *E2FSPROGS),
    disk_modules=("virtio_pci", "virtio_blk", "crc32c_generic", "ext4"),
    spare_modules=("softdog", *ESP_MODULES),
    wheel_platforms=("manylinux2014_x86_64", "manylinux_2_28_x86_64", "manylinux_2_34_x86_64"),
    console="ttyS0",
)
