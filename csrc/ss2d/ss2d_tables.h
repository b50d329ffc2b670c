// Written by tools/make_ss2d_tables.py, which says what these are.
#pragma once

namespace vmamba {
namespace VMAMBA_ISA {
namespace {

// Relative error 1.1e-07; entry i is for r = i - 15.
alignas(64) constexpr float softplus_terms[6][16] = {{
    0x1.7153c00p+0f, 0x1.7151960p+0f, 0x1.714eb20p+0f, 0x1.7148ee0p+0f, 0x1.713d640p+0f, 0x1.7126560p+0f,
    0x1.70f8420p+0f, 0x1.709c480p+0f, 0x1.6fe50c0p+0f, 0x1.6e796a0p+0f, 0x1.6bad380p+0f, 0x1.663f700p+0f,
    0x1.5c01a20p+0f, 0x1.49a7840p+0f, 0x1.2b80340p+0f, 0x1.0000000p+0f}, {
    0x1.fffe040p-1f, 0x1.fff8040p-1f, 0x1.ffeff60p-1f, 0x1.ffdffc0p-1f, 0x1.ffbffe0p-1f, 0x1.ff80240p-1f,
    0x1.ff00820p-1f, 0x1.fe01f40p-1f, 0x1.fc07e80p-1f, 0x1.f81f840p-1f, 0x1.f07c200p-1f, 0x1.e1e1e40p-1f,
    0x1.c71c700p-1f, 0x1.9999a00p-1f, 0x1.5555540p-1f, 0x1.fffffc0p-2f}, {
    0x1.62df320p-2f, 0x1.62d6f20p-2f, 0x1.62cc3c0p-2f, 0x1.62b5e20p-2f, 0x1.6289ba0p-2f, 0x1.6230b00p-2f,
    0x1.6180680p-2f, 0x1.6020e20p-2f, 0x1.5d67c00p-2f, 0x1.580cae0p-2f, 0x1.4db4e40p-2f, 0x1.3a5e5e0p-2f,
    0x1.1869fa0p-2f, 0x1.c644960p-3f, 0x1.3b757a0p-3f, 0x1.62e2a80p-4f}, {
    0x1.47f59e0p-4f, 0x1.47e6fe0p-4f, 0x1.47d9240p-4f, 0x1.47aeb20p-4f, 0x1.475e100p-4f, 0x1.46b2440p-4f,
    0x1.4570320p-4f, 0x1.42ed480p-4f, 0x1.3deed00p-4f, 0x1.342e200p-4f, 0x1.21b7760p-4f, 0x1.005aac0p-4f,
    0x1.9323f20p-5f, 0x1.f7bda60p-6f, 0x1.84bb5a0p-7f, 0x1.20491e0p-20f}, {
    0x1.c96af80p-7f, 0x1.c937de0p-7f, 0x1.c8db8c0p-7f, 0x1.c878c40p-7f, 0x1.c7847c0p-7f, 0x1.c5e9d20p-7f,
    0x1.c22ef80p-7f, 0x1.bb01600p-7f, 0x1.acff8e0p-7f, 0x1.92809e0p-7f, 0x1.60c4a00p-7f, 0x1.0c5c160p-7f,
    0x1.2111700p-8f, 0x1.4cf35a0p-12f, -0x1.0c95920p-9f, -0x1.c1b0fe0p-10f}, {
    0x1.fb2fda0p-10f, 0x1.fa17e00p-10f, 0x1.f4cb340p-10f, 0x1.f4bd140p-10f, 0x1.f204a80p-10f, 0x1.f489d40p-10f,
    0x1.e95d0a0p-10f, 0x1.d6e1120p-10f, 0x1.b934480p-10f, 0x1.8718020p-10f, 0x1.20927c0p-10f, 0x1.06a5880p-11f,
    -0x1.e336140p-13f, -0x1.5e70560p-11f, -0x1.ed89e80p-12f, -0x1.e3bc4a0p-19f}};

// Relative error 1.2e-07, of the derivative too, which backward takes.
alignas(64) constexpr float softplus_fine_terms[7][16] = {{
    0x1.7153be0p+0f, 0x1.7151940p+0f, 0x1.714eb20p+0f, 0x1.7148ec0p+0f, 0x1.713d640p+0f, 0x1.7126540p+0f,
    0x1.70f8400p+0f, 0x1.709c460p+0f, 0x1.6fe50c0p+0f, 0x1.6e79680p+0f, 0x1.6bad380p+0f, 0x1.663f700p+0f,
    0x1.5c01a40p+0f, 0x1.49a7840p+0f, 0x1.2b80340p+0f, 0x1.0000000p+0f}, {
    0x1.fffe020p-1f, 0x1.fff8020p-1f, 0x1.fff0020p-1f, 0x1.ffe0040p-1f, 0x1.ffc00a0p-1f, 0x1.ff80220p-1f,
    0x1.ff00820p-1f, 0x1.fe02000p-1f, 0x1.fc07f20p-1f, 0x1.f81f820p-1f, 0x1.f07c1e0p-1f, 0x1.e1e1e00p-1f,
    0x1.c71c700p-1f, 0x1.99999a0p-1f, 0x1.5555580p-1f, 0x1.0000000p-1f}, {
    0x1.62e1640p-2f, 0x1.62d9120p-2f, 0x1.62cdfc0p-2f, 0x1.62b7d00p-2f, 0x1.628b800p-2f, 0x1.6232fa0p-2f,
    0x1.6182520p-2f, 0x1.6022880p-2f, 0x1.5d69180p-2f, 0x1.580e3a0p-2f, 0x1.4db5700p-2f, 0x1.3a5e160p-2f,
    0x1.1868780p-2f, 0x1.c642ce0p-3f, 0x1.3b75820p-3f, 0x1.62e42c0p-4f}, {
    0x1.47f65c0p-4f, 0x1.47e6fe0p-4f, 0x1.47d2940p-4f, 0x1.47a98a0p-4f, 0x1.4757b20p-4f, 0x1.46b4480p-4f,
    0x1.456e8e0p-4f, 0x1.42e75e0p-4f, 0x1.3de9a60p-4f, 0x1.3430ae0p-4f, 0x1.21b9460p-4f, 0x1.005cec0p-4f,
    0x1.93232a0p-5f, 0x1.f7c8f60p-6f, 0x1.84ac600p-7f, -0x1.f088ba0p-30f}, {
    0x1.c6a8420p-7f, 0x1.c67e1e0p-7f, 0x1.c645380p-7f, 0x1.c5d4260p-7f, 0x1.c4f1640p-7f, 0x1.c32bf20p-7f,
    0x1.bfa5d20p-7f, 0x1.b8ae3e0p-7f, 0x1.aafef00p-7f, 0x1.90c2580p-7f, 0x1.6027fa0p-7f, 0x1.0cf5840p-7f,
    0x1.24ae040p-8f, 0x1.746df40p-12f, -0x1.0d7bd20p-9f, -0x1.c6a1b80p-10f}, {
    0x1.fb1aca0p-10f, 0x1.fabb120p-10f, 0x1.fa31180p-10f, 0x1.f93a6e0p-10f, 0x1.f7396c0p-10f, 0x1.f33a860p-10f,
    0x1.eb45d80p-10f, 0x1.db9fe60p-10f, 0x1.bd5e9a0p-10f, 0x1.8424be0p-10f, 0x1.1f221a0p-10f, 0x1.02e9d20p-11f,
    -0x1.df93960p-13f, -0x1.62e4a60p-11f, -0x1.e7cdf00p-12f, 0x1.09f1560p-28f}, {
    0x1.cfeb940p-13f, 0x1.cf116c0p-13f, 0x1.ce25040p-13f, 0x1.cc270e0p-13f, 0x1.c877360p-13f, 0x1.c1abc00p-13f,
    0x1.b3e28e0p-13f, 0x1.97f1d00p-13f, 0x1.65c2660p-13f, 0x1.ffd3f00p-14f, 0x1.8535780p-15f, -0x1.e1ee400p-15f,
    -0x1.201bba0p-13f, -0x1.acb2300p-14f, 0x1.bd18d80p-16f, 0x1.c83b280p-15f}};

// 2^(i / 32), and (2^f - 1) / f for |f| <= 1 / 64, whose error is 5.3e-08 of 2^f.
alignas(64) constexpr float exp2_fraction[32] = {
    0x1.0000000p+0f, 0x1.059b0e0p+0f, 0x1.0b55860p+0f, 0x1.11301e0p+0f, 0x1.172b840p+0f, 0x1.1d48740p+0f,
    0x1.2387a60p+0f, 0x1.29e9e00p+0f, 0x1.306fe00p+0f, 0x1.371a740p+0f, 0x1.3dea640p+0f, 0x1.44e0860p+0f,
    0x1.4bfdae0p+0f, 0x1.5342b60p+0f, 0x1.5ab07e0p+0f, 0x1.6247ec0p+0f, 0x1.6a09e60p+0f, 0x1.71f75e0p+0f,
    0x1.7a11480p+0f, 0x1.82589a0p+0f, 0x1.8ace540p+0f, 0x1.93737c0p+0f, 0x1.9c49180p+0f, 0x1.a5503c0p+0f,
    0x1.ae89fa0p+0f, 0x1.b7f7700p+0f, 0x1.c199be0p+0f, 0x1.cb720e0p+0f, 0x1.d5818e0p+0f, 0x1.dfc9740p+0f,
    0x1.ea4afa0p+0f, 0x1.f507660p+0f};
alignas(64) constexpr float exp2_terms[2] = {
    0x1.62e5840p-1f, 0x1.ebfbea0p-3f};

}  // namespace
}  // namespace VMAMBA_ISA
}  // namespace vmamba
