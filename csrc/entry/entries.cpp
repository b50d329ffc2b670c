// What Python can call, one line for each kernel, and the structs that it passes.
#include "entry/dispatch.h"
#include "lanes/vecmath_args.h"
#include "layers/depthwise_args.h"
#include "layers/gelu_args.h"
#include "packed/product_args.h"
#include "scan/scan_args.h"
#include "ss2d/ss2d_args.h"
#include "ssd/ssd_args.h"

VMAMBA_ENTRY(vecmath, VecmathArgs)
VMAMBA_ENTRY(selective_scan_forward, ScanForwardArgs)
VMAMBA_ENTRY(selective_scan_backward, ScanBackwardArgs)
VMAMBA_ENTRY(ss2d_forward, Ss2dForwardArgs)
VMAMBA_ENTRY(ss2d_backward, Ss2dBackwardArgs)
VMAMBA_ENTRY(ssd_forward, SsdForwardArgs)
VMAMBA_ENTRY(gelu_forward, GeluForwardArgs)
VMAMBA_ENTRY(gelu_backward, GeluBackwardArgs)
VMAMBA_ENTRY(depthwise_forward, DepthwiseForwardArgs)
VMAMBA_ENTRY(depthwise_backward, DepthwiseBackwardArgs)
VMAMBA_ENTRY(pack_matrix, PackMatrixArgs)
VMAMBA_ENTRY(packed_linear, LinearArgs)
VMAMBA_ENTRY(packed_mlp, MlpArgs)
VMAMBA_ENTRY(packed_conv, PackedConvArgs)

namespace {

struct Described {
  const char *name, *declaration;
  int64_t size;
};

#define VMAMBA_DESCRIBED(Name) \
  { #Name, vmamba::Name::declaration, sizeof(vmamba::Name) }

// A struct stands behind those that it holds.
constexpr Described structs[] = {
    VMAMBA_DESCRIBED(Tensor),
    VMAMBA_DESCRIBED(VecmathArgs),
    VMAMBA_DESCRIBED(ScanShape),
    VMAMBA_DESCRIBED(ScanInputs),
    VMAMBA_DESCRIBED(ScanForwardArgs),
    VMAMBA_DESCRIBED(ScanBackwardArgs),
    VMAMBA_DESCRIBED(Ss2dShape),
    VMAMBA_DESCRIBED(Ss2dInputs),
    VMAMBA_DESCRIBED(Ss2dForwardArgs),
    VMAMBA_DESCRIBED(Ss2dBackwardArgs),
    VMAMBA_DESCRIBED(SsdForwardArgs),
    VMAMBA_DESCRIBED(GeluForwardArgs),
    VMAMBA_DESCRIBED(GeluBackwardArgs),
    VMAMBA_DESCRIBED(DepthwiseInputs),
    VMAMBA_DESCRIBED(DepthwiseForwardArgs),
    VMAMBA_DESCRIBED(DepthwiseBackwardArgs),
    VMAMBA_DESCRIBED(PackedMatrix),
    VMAMBA_DESCRIBED(PackMatrixArgs),
    VMAMBA_DESCRIBED(Gate),
    VMAMBA_DESCRIBED(ProductInputs),
    VMAMBA_DESCRIBED(ProductOutputs),
    VMAMBA_DESCRIBED(ProductSharing),
    VMAMBA_DESCRIBED(LinearArgs),
    VMAMBA_DESCRIBED(MlpArgs),
    VMAMBA_DESCRIBED(PackedConvArgs),
    {nullptr, nullptr, 0},  // the end
};

}  // namespace

// Every struct's name, declaration and size; the last has no name.
VMAMBA_EXPORT const void* vmamba_structs() { return structs; }
