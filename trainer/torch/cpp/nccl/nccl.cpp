// NCCL's backend of c10d, as a library of its own: it needs CUDA, the rest of this program does not. It is loaded beside
// libtorch's CUDA library when several ranks train on GPUs.

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include "torch.h"

extern "C" char* simclr_make_nccl(void* store, int rank, int world, int64_t timeout_ms, void** backend) {
  return simclr::guard([&] {
    auto options = c10d::ProcessGroupNCCL::Options::create();
    options->timeout = std::chrono::milliseconds(timeout_ms);
    auto own = c10::make_intrusive<c10d::PrefixStore>("nccl", *static_cast<c10::intrusive_ptr<c10d::Store>*>(store));
    auto made = c10::make_intrusive<c10d::ProcessGroupNCCL>(std::move(own), rank, world, std::move(options));
    c10::intrusive_ptr<c10d::Backend> handed = std::move(made);
    *backend = handed.release();
  });
}
