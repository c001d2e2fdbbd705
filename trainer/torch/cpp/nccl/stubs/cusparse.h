// libtorch names these types in declarations that are not used here.
#pragma once
typedef struct cusparseContext* cusparseHandle_t;
enum cusparseStatus_t : int;
