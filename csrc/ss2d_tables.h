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

// Relative error 4.0e-08: for backward, which takes the derivative too.
alignas(64) constexpr float softplus_fine_terms[7][16] = {{
    0x1.7153be0p+0f, 0x1.7151940p+0f, 0x1.714eb20p+0f, 0x1.7148ec0p+0f, 0x1.713d620p+0f, 0x1.7126540p+0f,
    0x1.70f8400p+0f, 0x1.709c460p+0f, 0x1.6fe50c0p+0f, 0x1.6e79680p+0f, 0x1.6bad380p+0f, 0x1.663f700p+0f,
    0x1.5c01a40p+0f, 0x1.49a7840p+0f, 0x1.2b80340p+0f, 0x1.0000000p+0f}, {
    0x1.fffe000p-1f, 0x1.fff8000p-1f, 0x1.fff0020p-1f, 0x1.ffe0020p-1f, 0x1.ffc0060p-1f, 0x1.ff80200p-1f,
    0x1.ff00800p-1f, 0x1.fe01fc0p-1f, 0x1.fc07f00p-1f, 0x1.f81f820p-1f, 0x1.f07c200p-1f, 0x1.e1e1e20p-1f,
    0x1.c71c720p-1f, 0x1.9999980p-1f, 0x1.5555540p-1f, 0x1.0000000p-1f}, {
    0x1.62e1080p-2f, 0x1.62d8cc0p-2f, 0x1.62cd1c0p-2f, 0x1.62b7f60p-2f, 0x1.628c6e0p-2f, 0x1.62326a0p-2f,
    0x1.61824c0p-2f, 0x1.6023540p-2f, 0x1.5d687c0p-2f, 0x1.580e9a0p-2f, 0x1.4db4cc0p-2f, 0x1.3a5dc60p-2f,
    0x1.18681a0p-2f, 0x1.c6443c0p-3f, 0x1.3b76500p-3f, 0x1.62e42e0p-4f}, {
    0x1.47f77c0p-4f, 0x1.47e8620p-4f, 0x1.47d21a0p-4f, 0x1.47aae80p-4f, 0x1.475b1a0p-4f, 0x1.46b5300p-4f,
    0x1.456f6a0p-4f, 0x1.42ea620p-4f, 0x1.3dea240p-4f, 0x1.3431360p-4f, 0x1.21b7740p-4f, 0x1.005b4a0p-4f,
    0x1.931fe40p-5f, 0x1.f7d0a00p-6f, 0x1.84c0540p-7f, -0x1.036ca20p-29f}, {
    0x1.c724d80p-7f, 0x1.c6d82c0p-7f, 0x1.c7571a0p-7f, 0x1.c5b0ee0p-7f, 0x1.c3e99c0p-7f, 0x1.c3e74c0p-7f,
    0x1.bfab8c0p-7f, 0x1.b7c9b00p-7f, 0x1.abc24e0p-7f, 0x1.90504a0p-7f, 0x1.60e2120p-7f, 0x1.0d49b80p-7f,
    0x1.257ad20p-8f, 0x1.59c3d60p-12f, -0x1.0f38080p-9f, -0x1.c6a6240p-10f}, {
    0x1.fa2dec0p-10f, 0x1.f9860e0p-10f, 0x1.fb04240p-10f, 0x1.f806980p-10f, 0x1.f3d9620p-10f, 0x1.f2a3ba0p-10f,
    0x1.ea98bc0p-10f, 0x1.d8a7160p-10f, 0x1.bd53820p-10f, 0x1.8372680p-10f, 0x1.20fde20p-10f, 0x1.05fdee0p-11f,
    -0x1.d2eec80p-13f, -0x1.66e6d60p-11f, -0x1.f0a10e0p-12f, 0x1.5153fe0p-27f}, {
    0x1.7bf5ee0p-13f, 0x1.9411a00p-13f, 0x1.25d2960p-13f, 0x1.dd7b8a0p-13f, 0x1.2f85f20p-12f, 0x1.4835040p-13f,
    0x1.b03d560p-13f, 0x1.0d76300p-12f, 0x1.d7faf40p-14f, 0x1.43e92c0p-13f, -0x1.5c993a0p-18f, -0x1.4d79640p-14f,
    -0x1.59b4900p-13f, -0x1.6261280p-15f, 0x1.d8d9da0p-15f, 0x1.c9a0de0p-15f}};

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
