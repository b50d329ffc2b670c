// What Python can call: one line for each kernel.
#include "depthwise_args.h"
#include "dispatch.h"
#include "gelu_args.h"
#include "product_args.h"
#include "scan_args.h"
#include "ss2d_args.h"
#include "vecmath_args.h"

VMAMBA_ENTRY(vecmath, VecmathArgs)
VMAMBA_ENTRY(selective_scan_forward, ScanForwardArgs)
VMAMBA_ENTRY(selective_scan_backward, ScanBackwardArgs)
VMAMBA_ENTRY(ss2d_forward, Ss2dForwardArgs)
VMAMBA_ENTRY(ss2d_backward, Ss2dBackwardArgs)
VMAMBA_ENTRY(gelu_forward, GeluForwardArgs)
VMAMBA_ENTRY(gelu_backward, GeluBackwardArgs)
VMAMBA_ENTRY(depthwise_forward, DepthwiseForwardArgs)
VMAMBA_ENTRY(depthwise_backward, DepthwiseBackwardArgs)
VMAMBA_ENTRY(pack_matrix, PackMatrixArgs)
VMAMBA_ENTRY(packed_linear, LinearArgs)
VMAMBA_ENTRY(packed_mlp, MlpArgs)
VMAMBA_ENTRY(packed_conv, PackedConvArgs)
