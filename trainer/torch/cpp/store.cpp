#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include <c10/util/Logging.h>

#include "group.h"

extern "C" void simclr_free_text(char* text) {
  free(text);
}

extern "C" char* simclr_store_open(
    const char* host, uint16_t* port, bool keep, int listening, const char* prefix, int64_t timeout_ms,
    SimclrStore** store) {
  return simclr::guard([&] {
    // Its warnings and errors repeat, with stack traces, what comes back as an error here.
    if (getenv("TORCH_CPP_LOG_LEVEL") == nullptr) {
      FLAGS_caffe2_log_level = 3;
    }
    c10d::TCPStoreOptions options;
    options.port = *port;
    options.isServer = keep;
    if (listening >= 0) {
      // By itself it listens at all addresses of the machine.
      options.masterListenFd = listening;
    }
    options.waitWorkers = false;
    options.timeout = std::chrono::milliseconds(timeout_ms);
    auto tcp = c10::make_intrusive<c10d::TCPStore>(host, options);
    *port = tcp->getPort();
    *store = new SimclrStore{c10::make_intrusive<c10d::PrefixStore>(prefix, std::move(tcp))};
  });
}

extern "C" void simclr_store_close(SimclrStore* store) {
  delete store;
}

extern "C" char* simclr_store_set(SimclrStore* store, const char* key, const char* value, size_t length) {
  return simclr::guard([&] { store->store->set(key, std::vector<uint8_t>(value, value + length)); });
}

extern "C" char* simclr_store_get(
    SimclrStore* store, const char* key, int64_t timeout_ms, bool* found, char** value, size_t* length) {
  return simclr::guard([&] {
    *found = store->store->check({key});
    if (!*found && timeout_ms > 0) {
      try {
        store->store->wait({key}, std::chrono::milliseconds(timeout_ms));
      } catch (const std::exception&) {
        // It did not come in time, or the store is gone, which check says by throwing.
      }
      *found = store->store->check({key});
    }
    if (!*found) {
      return;
    }
    const auto bytes = store->store->get(key);
    *length = bytes.size();
    *value = static_cast<char*>(malloc(bytes.size() + 1));
    memcpy(*value, bytes.data(), bytes.size());
  });
}
