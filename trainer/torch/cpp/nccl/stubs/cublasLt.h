// libtorch names these types in declarations that are not used here.
#pragma once
typedef struct cublasLtContext* cublasLtHandle_t;
