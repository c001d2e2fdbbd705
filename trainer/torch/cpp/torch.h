// What simclr-torch asks of libtorch beyond what tch offers, as C functions that trainer/torch/src declares again:
//
//   store.cpp, group.cpp       several processes that train together: torch's own c10d
//   sync_batch_norm.cpp        batch norm over all of them
//   reducer.cpp                gradients that are reduced while the backward pass goes on
//   streams.cpp                copies to a GPU beside its computing, and when they were done
//   gpu.cpp                    which GPU computes, how precisely, and its memory
//   foreach.cpp                one operation on many tensors, which a GPU does in few launches
//   nccl/                      a library of its own, for processes on GPUs
//
// Each function returns null, or what went wrong as text, to be given to simclr_free_text. Tensors are those of torch-sys:
// pointers to at::Tensor, borrowed, but for the ones that are handed out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <string>

#include <c10/util/Exception.h>

namespace at {
class Tensor;
}

namespace simclr {

// Runs `body`; what it throws becomes text.
template <typename Body>
char* guard(Body&& body) {
  std::string what;
  try {
    body();
    return nullptr;
  } catch (const c10::Error& error) {
    what = error.what_without_backtrace();
  } catch (const std::exception& error) {
    what = error.what();
  } catch (...) {
    what = "an exception of no known type";
  }
  return strdup(what.c_str());
}

} // namespace simclr

extern "C" {

struct SimclrStore;
struct SimclrGroup;
struct SimclrReducer;
struct SimclrMoment;
struct SimclrSideStream;

void simclr_free_text(char* text);

// --- store.cpp: words that ranks leave for each other, kept by one of them or by whoever launched them.

// Opens the store at host:port; one opener keeps it, who may leave the port to the system: it comes back in `port`. Keys
// get `prefix` in front.
char* simclr_store_open(
    const char* host, uint16_t* port, bool keep, int listening, const char* prefix,
    int64_t timeout_ms, SimclrStore** store);
void simclr_store_close(SimclrStore* store);
char* simclr_store_set(SimclrStore* store, const char* key, const char* value, size_t length);
// Waits until the key is there; `found` stays false if it does not come in time. The value is to be freed by
// simclr_free_text.
char* simclr_store_get(
    SimclrStore* store, const char* key, int64_t timeout_ms, bool* found, char** value, size_t* length);

// --- group.cpp: collectives. All ranks call them in the same order.

// Tensors on the CPU go by Gloo, over the interface that GLOO_SOCKET_IFNAME names if it is set, and over loopback if that
// is where the ranks meet. `nccl` is null, or makes the backend for tensors on a GPU (nccl/nccl.cpp).
using SimclrMakeBackend = char* (*)(void* store, int rank, int world, int64_t timeout_ms, void** backend);
char* simclr_group_open(
    SimclrStore* store, const char* host, int rank, int world, int64_t timeout_ms, SimclrMakeBackend nccl,
    SimclrGroup** group);
void simclr_group_close(SimclrGroup* group);
// Sums in place.
char* simclr_all_reduce(SimclrGroup* group, at::Tensor* tensor);
// Fills `all`, [world, ...], with everyone's `own`, [...].
char* simclr_all_gather(SimclrGroup* group, at::Tensor* own, at::Tensor* all);
char* simclr_broadcast(SimclrGroup* group, at::Tensor* tensor, int from);

// --- sync_batch_norm.cpp

// Batch norm of x, [N, C, ...], by the statistics of all ranks' x, which have one shape. `shift`, and both running
// statistics, may be null. Handed out is a new tensor.
char* simclr_sync_batch_norm(
    SimclrGroup* group,
    at::Tensor* x,
    at::Tensor* scale,
    at::Tensor* shift,
    at::Tensor* running_mean,
    at::Tensor* running_var,
    double momentum,
    double epsilon,
    at::Tensor** out);

// --- reducer.cpp: gradients become the mean over all ranks while the backward pass goes on.

char* simclr_reducer_open(SimclrGroup* group, at::Tensor** parameters, size_t count, SimclrReducer** reducer);
void simclr_reducer_close(SimclrReducer* reducer);
// The next backward pass reduces, together with what passes since the last reduction have added up.
char* simclr_reducer_prepare(SimclrReducer* reducer);
// Forgets all gradients.
char* simclr_reducer_clear(SimclrReducer* reducer);

// --- streams.cpp: only for devices that have streams.

// A stream of `device` beside the one that it computes on.
char* simclr_side_stream_open(int device, SimclrSideStream** side);
void simclr_side_stream_close(SimclrSideStream* side);
// Copies `pinned` to the device on the side stream, and returns at once. The copy is to be used, and `pinned` written to
// again, only after a wait for `done`.
char* simclr_side_stream_copy(SimclrSideStream* side, at::Tensor* pinned, at::Tensor** copy, SimclrMoment** done);
// A moment of the computing stream: when all that was asked of it up to now is done.
char* simclr_moment_now(int device, SimclrMoment** now);
void simclr_moment_drop(SimclrMoment* moment);
// What is asked of the computing stream from now on begins after the moment.
char* simclr_moment_hold(SimclrMoment* moment);
// Milliseconds from one moment to another, both of which are waited for.
char* simclr_moments_apart(SimclrMoment* earlier, SimclrMoment* later, double* milliseconds);

// --- gpu.cpp

// Makes `device` the one that this thread's kernels without a tensor of their own go to.
char* simclr_gpu_use(int device);
// Bytes of memory that are free, that there are, and that tensors have taken at most.
char* simclr_gpu_memory(int device, uint64_t* available, uint64_t* total, uint64_t* peak);
// A vector of so many zero bytes in host memory that a GPU copies from without a detour.
char* simclr_pinned_zeros(int64_t bytes, at::Tensor** pinned);
// Whether f32 products and convolutions may drop to TF32's 10 bits of mantissa, and whether cuDNN tries its algorithms for
// each shape and takes the fastest.
char* simclr_gpu_arithmetic(bool tf32, bool benchmark);

// --- foreach.cpp: lists of one length, of tensors of equal shapes.

// x += factor · y
char* simclr_lists_add(at::Tensor** x, at::Tensor** y, size_t count, double factor);
// x *= factor
char* simclr_lists_scale(at::Tensor** x, size_t count, double factor);
// x *= factors[i]
char* simclr_lists_scale_each(at::Tensor** x, size_t count, at::Tensor* factors);
// x + factor · y, handed out in `sums`
char* simclr_lists_sum(at::Tensor** x, at::Tensor** y, size_t count, double factor, at::Tensor** sums);
// x += factor · y²
char* simclr_lists_add_squares(at::Tensor** x, at::Tensor** y, size_t count, double factor);
// x += factor · y / (√z / root + epsilon)
char* simclr_lists_add_ratio(
    at::Tensor** x, at::Tensor** y, at::Tensor** z, size_t count, double factor, double root, double epsilon);
// ‖x‖ of each, [count]
char* simclr_lists_norms(at::Tensor** x, size_t count, at::Tensor** norms);
}
