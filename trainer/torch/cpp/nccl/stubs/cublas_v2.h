// libtorch names these types in declarations that are not used here.
#pragma once
typedef struct cublasContext* cublasHandle_t;
enum cublasStatus_t : int;
