// The scans as AOTInductor's compiled models call them, in a static library that goes into such a model
// (src/vmamba/export/aoti.py): the model then needs neither this package nor Python.
//
// Each function stands for the operator of its name in src/vmamba/scan/schema.py, called without gradients. What
// it needs of torch is torch's C interface for compiled models, declared here, so that this too builds without torch.
#include <cstdio>
#include <cstring>
#include <initializer_list>

#include "entry/dispatch.h"
#include "lanes/run_team.h"
#include "scan/scan_args.h"
#include "ss2d/ss2d_args.h"

VMAMBA_ENTRY(selective_scan_forward, ScanForwardArgs)
VMAMBA_ENTRY(ss2d_forward, Ss2dForwardArgs)

extern "C" {

typedef struct AtenTensorOpaque* AtenTensorHandle;
typedef int32_t AOTITorchError;

AOTITorchError aoti_torch_get_data_ptr(AtenTensorHandle tensor, void** data);
AOTITorchError aoti_torch_get_dim(AtenTensorHandle tensor, int64_t* dim);
AOTITorchError aoti_torch_get_sizes(AtenTensorHandle tensor, int64_t** sizes);
AOTITorchError aoti_torch_get_strides(AtenTensorHandle tensor, int64_t** strides);
AOTITorchError aoti_torch_get_dtype(AtenTensorHandle tensor, int32_t* dtype);
int32_t aoti_torch_dtype_float32();
int32_t aoti_torch_dtype_bfloat16();
int32_t aoti_torch_dtype_float16();
int32_t aoti_torch_device_type_cpu();
AOTITorchError aoti_torch_empty_strided(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype,
                                        int32_t device_type, int32_t device_index, AtenTensorHandle* tensor);
AOTITorchError aoti_torch_delete_tensor_object(AtenTensorHandle tensor);

// Of the OpenMP runtime that torch uses; without one the kernels run on the calling thread.
__attribute__((weak)) int omp_get_max_threads();
__attribute__((weak)) void GOMP_parallel(void (*f)(void*), void* data, unsigned threads, unsigned flags);

}  // extern "C"

namespace vmamba {
namespace {

constexpr AOTITorchError failure = 1;
constexpr int64_t lanes = 16;  // of the widest instruction set; channels of workspaces are padded to it

int64_t round_up(int64_t n) { return (n + lanes - 1) / lanes * lanes; }

// A tensor of torch's, and what went wrong while it was looked at, or null.
struct View {
  Tensor tensor = {};
  int64_t dim = 0, elements = 1;
  const int64_t *sizes = nullptr, *strides = nullptr;
  const char* wrong = nullptr;

  explicit View(AtenTensorHandle handle) {
    int32_t dtype = 0;
    int64_t *its_sizes = nullptr, *its_strides = nullptr;
    if (aoti_torch_get_data_ptr(handle, &tensor.data) || aoti_torch_get_dim(handle, &dim) ||
        aoti_torch_get_sizes(handle, &its_sizes) || aoti_torch_get_strides(handle, &its_strides) ||
        aoti_torch_get_dtype(handle, &dtype)) {
      wrong = "torch gave no account of a tensor";
      return;
    }
    sizes = its_sizes;
    strides = its_strides;
    for (int64_t i = 0; i < dim; ++i) elements *= sizes[i];
    for (int64_t i = 0; i < dim && i < 4; ++i) tensor.stride[i] = strides[i];
    if (dtype == aoti_torch_dtype_float32())
      tensor.dtype = int64_t(Dtype::float32);
    else if (dtype == aoti_torch_dtype_bfloat16())
      tensor.dtype = int64_t(Dtype::bfloat16);
    else if (dtype == aoti_torch_dtype_float16())
      tensor.dtype = int64_t(Dtype::float16);
    else
      wrong = "a tensor is neither float32, bfloat16 nor float16";
  }

  // Whether the axes from `first` on lie one behind the other.
  bool contiguous_from(int64_t first) const {
    int64_t step = 1;
    for (int64_t i = dim - 1; i >= first; --i) {
      if (sizes[i] != 1 && strides[i] != step) return false;
      step *= sizes[i];
    }
    return true;
  }

  // As the fused kernel reads a map (b, h, w, …): the strides of images, pixels, and what is in a pixel.
  void take_as_map() {
    if (wrong) return;
    const bool one_row = sizes[1] == 1, one_column = sizes[2] == 1;
    if (!contiguous_from(dim == 5 ? 4 : 3) || !(one_row || one_column || strides[1] == sizes[2] * strides[2]))
      wrong = "the pixels of a map do not lie at equal distances";
    tensor.stride[1] = one_column ? strides[1] : strides[2];
    tensor.stride[2] = dim == 5 ? strides[3] : 1;
  }

  // Its data, or null.
  const float* parameter() {
    if (wrong) return nullptr;
    if (tensor.dtype != int64_t(Dtype::float32) || !contiguous_from(0)) wrong = "a parameter is not contiguous float32";
    return static_cast<const float*>(tensor.data);
  }
};

// A parameter that may be absent.
struct OptionalParameter {
  const float* data = nullptr;
  const char* wrong = nullptr;

  explicit OptionalParameter(const AtenTensorHandle* handle) {
    if (!handle) return;
    View view(*handle);
    data = view.parameter();
    wrong = view.wrong;
  }
};

AOTITorchError refuse(const char* operation, const char* why) {
  std::fprintf(stderr, "vmamba: %s: %s\n", operation, why);
  return failure;
}

AOTITorchError make(int64_t dim, const int64_t* sizes, AtenTensorHandle* handle, float** data) {
  int64_t strides[4] = {};
  for (int64_t i = dim - 1, step = 1; i >= 0; step *= sizes[i--]) strides[i] = step;
  if (aoti_torch_empty_strided(dim, sizes, strides, aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0, handle))
    return failure;
  void* at = nullptr;
  if (aoti_torch_get_data_ptr(*handle, &at)) return failure;
  *data = static_cast<float*>(at);
  return 0;
}

// y, of the shape of `like`, and what the operator returns in place of the states that backward would want.
AOTITorchError make_results(const View& like, AtenTensorHandle* y, float** y_data, AtenTensorHandle* saved) {
  const int64_t none = 0;
  float* nothing;
  return make(like.dim, like.sizes, y, y_data) || make(1, &none, saved, &nothing) ? failure : 0;
}

// Memory that goes when the call ends.
struct Workspace {
  AtenTensorHandle handle = nullptr;
  float* data = nullptr;
  bool there;

  explicit Workspace(int64_t floats) : there(!make(1, &floats, &handle, &data)) {}
  ~Workspace() {
    if (handle) aoti_torch_delete_tensor_object(handle);
  }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
};

int64_t thread_count() {
  if (!GOMP_parallel || !omp_get_max_threads) return 1;
  run_team = GOMP_parallel;
  return omp_get_max_threads();
}

int best_isa() {
  for (int isa = isa_count - 1; isa > 0; --isa)
    if (isa_usable(isa)) return isa;
  return 0;
}

// The library's kernels, each with the best instruction set of the CPU that runs the model.
template <class Args>
AOTITorchError run(int (*kernel)(const Args*, int64_t, int), const Args& args) {
  return kernel(&args, sizeof args, best_isa()) == done ? 0 : failure;
}

}  // namespace
}  // namespace vmamba

using namespace vmamba;

extern "C" AOTITorchError aoti_torch_cpu_ss2d_scan(AtenTensorHandle x_handle, AtenTensorHandle x_dbl_handle,
                                                   AtenTensorHandle dt_weight_handle, const AtenTensorHandle* dt_bias_handle,
                                                   AtenTensorHandle A_handle, const AtenTensorHandle* D_handle,
                                                   const int64_t* readings, int64_t reading_count, int32_t softplus,
                                                   int32_t save, AtenTensorHandle* y, AtenTensorHandle* saved) {
  View x(x_handle), x_dbl(x_dbl_handle), dt_weight(dt_weight_handle), A(A_handle);
  const OptionalParameter dt_bias(dt_bias_handle), D(D_handle);
  Ss2dForwardArgs args = {};
  args.in.dt_weight = dt_weight.parameter();
  args.in.A = A.parameter();
  args.in.dt_bias = dt_bias.data;
  args.in.D = D.data;
  x.take_as_map();
  x_dbl.take_as_map();
  for (const char* wrong : {x.wrong, x_dbl.wrong, dt_weight.wrong, A.wrong, dt_bias.wrong, D.wrong})
    if (wrong) return refuse("ss2d_scan", wrong);
  if (save || reading_count != SS2D_DIRECTIONS) return refuse("ss2d_scan", "it is not called as in inference");

  if (make_results(x, y, &args.y, saved)) return failure;
  if (x.elements == 0) return 0;
  args.in.x = x.tensor;
  args.in.x_dbl = x_dbl.tensor;
  Ss2dShape& shape = args.shape;
  shape.batch = x.sizes[0];
  shape.height = x.sizes[1];
  shape.width = x.sizes[2];
  shape.channels = x.sizes[3];
  shape.rank = dt_weight.sizes[2];
  shape.states = A.sizes[1];
  shape.directions = reading_count;
  std::memcpy(shape.reading, readings, sizeof shape.reading);
  shape.softplus = softplus;
  shape.threads = thread_count();
  const int64_t columns = shape.rank + 2 * shape.states;
  args.workspace_floats = columns * SS2D_CHUNK + (columns + SS2D_CHUNK + 2) * round_up(shape.channels);
  const Workspace workspace(shape.threads * args.workspace_floats);
  args.workspace = workspace.data;
  return workspace.there ? run(vmamba_ss2d_forward, args) : failure;
}

extern "C" AOTITorchError aoti_torch_cpu_selective_scan(AtenTensorHandle u_handle, AtenTensorHandle delta_handle,
                                                        AtenTensorHandle A_handle, AtenTensorHandle B_handle,
                                                        AtenTensorHandle C_handle, const AtenTensorHandle* D_handle,
                                                        const AtenTensorHandle* delta_bias_handle, int32_t softplus,
                                                        int32_t save, AtenTensorHandle* y, AtenTensorHandle* saved) {
  View u(u_handle), delta(delta_handle), A(A_handle), B(B_handle), C(C_handle);
  const OptionalParameter D(D_handle), delta_bias(delta_bias_handle);
  ScanForwardArgs args = {};
  args.in.A = A.parameter();
  args.in.D = D.data;
  args.in.delta_bias = delta_bias.data;
  for (const char* wrong : {u.wrong, delta.wrong, A.wrong, B.wrong, C.wrong, D.wrong, delta_bias.wrong})
    if (wrong) return refuse("selective_scan", wrong);
  if (save) return refuse("selective_scan", "it is not called as in inference");

  if (make_results(u, y, &args.y, saved)) return failure;
  if (u.elements == 0) return 0;
  args.in.u = u.tensor;
  args.in.delta = delta.tensor;
  args.in.B = B.tensor;
  args.in.C = C.tensor;
  ScanShape& shape = args.shape;
  shape.batch = B.sizes[0];
  shape.groups = B.sizes[1];
  shape.states = B.sizes[2];
  shape.length = B.sizes[3];
  shape.channels = u.sizes[1] / shape.groups;
  shape.softplus = softplus;
  shape.threads = thread_count();
  const Workspace workspace(2 * shape.batch * shape.groups * round_up(shape.channels) * shape.states);
  args.workspace = workspace.data;
  return workspace.there ? run(vmamba_selective_scan_forward, args) : failure;
}
