/* The part of the wasmtime C API that this host uses, declared here because the Python wheel brings the shared
 * library without its headers. Layouts and signatures are those of wasmtime 36 to 50; load_wasmtime() refuses a
 * library that lacks a function. */
#ifndef CORRAL_WASMTIME_H
#define CORRAL_WASMTIME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct wasm_config wasm_config_t;
typedef struct wasm_engine wasm_engine_t;
typedef struct wasm_trap wasm_trap_t;
typedef struct wasm_frame wasm_frame_t;
typedef struct wasm_functype wasm_functype_t;
typedef struct wasm_valtype wasm_valtype_t;
typedef struct wasm_importtype wasm_importtype_t;
typedef struct wasm_exporttype wasm_exporttype_t;
typedef struct wasm_externtype wasm_externtype_t;
typedef struct wasmtime_error wasmtime_error_t;
typedef struct wasmtime_module wasmtime_module_t;
typedef struct wasmtime_store wasmtime_store_t;
typedef struct wasmtime_context wasmtime_context_t;
typedef struct wasmtime_caller wasmtime_caller_t;
typedef struct wasmtime_linker wasmtime_linker_t;
typedef struct wasmtime_instance_pre wasmtime_instance_pre_t;
typedef struct wasmtime_pooling wasmtime_pooling_t;

typedef struct { size_t size; uint8_t *data; } wasm_byte_vec_t;
typedef struct { size_t size; wasm_valtype_t **data; } wasm_valtype_vec_t;
typedef struct { size_t size; wasm_importtype_t **data; } wasm_importtype_vec_t;
typedef struct { size_t size; wasm_exporttype_t **data; } wasm_exporttype_vec_t;
typedef struct { size_t size; wasm_frame_t **data; } wasm_frame_vec_t;

typedef union { int32_t i32; int64_t i64; float f32; double f64; uint8_t v128[16]; void *ptr; } wasmtime_val_raw_t;
typedef struct { uint64_t store_id; void *priv; } wasmtime_func_t;
typedef struct { struct { uint64_t store_id; uint32_t priv; } at; uint32_t priv2; } wasmtime_memory_t;
typedef struct { uint64_t store_id; size_t priv; } wasmtime_instance_t;
typedef struct {
  uint8_t kind;
  union { wasmtime_func_t func; wasmtime_memory_t memory; uint8_t room[48]; } of;
} wasmtime_extern_t;

enum { WASM_KIND_I32 = 0, WASM_KIND_I64 = 1 };
enum { WASMTIME_IS_FUNC = 0, WASMTIME_IS_MEMORY = 3 };
enum { WASM_EXTERN_IS_FUNC = 0 };
enum { WASMTIME_DEADLINE_CONTINUE = 0 };
enum { TRAP_STACK_OVERFLOW = 0, TRAP_MEMORY_BOUNDS = 1, TRAP_INTERRUPT = 10, TRAP_OUT_OF_FUEL = 11 };

typedef wasm_trap_t *(*wasmtime_unchecked_t)(void *env, wasmtime_caller_t *caller, wasmtime_val_raw_t *values,
                                             size_t count);
typedef wasmtime_error_t *(*wasmtime_deadline_t)(wasmtime_context_t *context, void *data, uint64_t *delta,
                                                 uint8_t *kind);

/* name, result, parameters */
#define WASMTIME_API(X) \
  X(wasm_config_new, wasm_config_t *, (void)) \
  X(wasm_engine_new_with_config, wasm_engine_t *, (wasm_config_t *)) \
  X(wasm_byte_vec_delete, void, (wasm_byte_vec_t *)) \
  X(wasm_valtype_new, wasm_valtype_t *, (uint8_t)) \
  X(wasm_valtype_vec_new, void, (wasm_valtype_vec_t *, size_t, wasm_valtype_t *const *)) \
  X(wasm_functype_new, wasm_functype_t *, (wasm_valtype_vec_t *, wasm_valtype_vec_t *)) \
  X(wasm_functype_delete, void, (wasm_functype_t *)) \
  X(wasm_functype_params, const wasm_valtype_vec_t *, (const wasm_functype_t *)) \
  X(wasm_functype_results, const wasm_valtype_vec_t *, (const wasm_functype_t *)) \
  X(wasm_valtype_kind, uint8_t, (const wasm_valtype_t *)) \
  X(wasm_importtype_module, const wasm_byte_vec_t *, (const wasm_importtype_t *)) \
  X(wasm_importtype_name, const wasm_byte_vec_t *, (const wasm_importtype_t *)) \
  X(wasm_importtype_type, const wasm_externtype_t *, (const wasm_importtype_t *)) \
  X(wasm_importtype_vec_delete, void, (wasm_importtype_vec_t *)) \
  X(wasm_exporttype_name, const wasm_byte_vec_t *, (const wasm_exporttype_t *)) \
  X(wasm_exporttype_type, const wasm_externtype_t *, (const wasm_exporttype_t *)) \
  X(wasm_exporttype_vec_delete, void, (wasm_exporttype_vec_t *)) \
  X(wasm_externtype_kind, uint8_t, (const wasm_externtype_t *)) \
  X(wasm_externtype_as_functype_const, const wasm_functype_t *, (const wasm_externtype_t *)) \
  X(wasm_trap_delete, void, (wasm_trap_t *)) \
  X(wasm_trap_message, void, (const wasm_trap_t *, wasm_byte_vec_t *)) \
  X(wasm_trap_trace, void, (const wasm_trap_t *, wasm_frame_vec_t *)) \
  X(wasm_frame_vec_delete, void, (wasm_frame_vec_t *)) \
  X(wasm_frame_func_index, uint32_t, (const wasm_frame_t *)) \
  X(wasm_frame_module_offset, size_t, (const wasm_frame_t *)) \
  X(wasmtime_frame_func_name, const wasm_byte_vec_t *, (const wasm_frame_t *)) \
  X(wasmtime_trap_new, wasm_trap_t *, (const char *, size_t)) \
  X(wasmtime_trap_code, bool, (const wasm_trap_t *, uint8_t *)) \
  X(wasmtime_error_new, wasmtime_error_t *, (const char *)) \
  X(wasmtime_error_delete, void, (wasmtime_error_t *)) \
  X(wasmtime_error_message, void, (const wasmtime_error_t *, wasm_byte_vec_t *)) \
  X(wasmtime_config_epoch_interruption_set, void, (wasm_config_t *, bool)) \
  X(wasmtime_config_consume_fuel_set, void, (wasm_config_t *, bool)) \
  X(wasmtime_config_max_wasm_stack_set, void, (wasm_config_t *, size_t)) \
  X(wasmtime_config_wasm_threads_set, void, (wasm_config_t *, bool)) \
  X(wasmtime_config_wasm_memory64_set, void, (wasm_config_t *, bool)) \
  X(wasmtime_config_wasm_multi_memory_set, void, (wasm_config_t *, bool)) \
  X(wasmtime_config_wasm_gc_set, void, (wasm_config_t *, bool)) \
  X(wasmtime_config_wasm_exceptions_set, void, (wasm_config_t *, bool)) \
  X(wasmtime_config_wasm_function_references_set, void, (wasm_config_t *, bool)) \
  X(wasmtime_config_parallel_compilation_set, void, (wasm_config_t *, bool)) \
  X(wasmtime_config_memory_init_cow_set, void, (wasm_config_t *, bool)) \
  X(wasmtime_pooling_allocation_strategy_set, void, (wasm_config_t *, const wasmtime_pooling_t *)) \
  X(wasmtime_pooling_allocation_config_new, wasmtime_pooling_t *, (void)) \
  X(wasmtime_pooling_allocation_config_delete, void, (wasmtime_pooling_t *)) \
  X(wasmtime_pooling_allocation_config_total_core_instances_set, void, (wasmtime_pooling_t *, uint32_t)) \
  X(wasmtime_pooling_allocation_config_total_memories_set, void, (wasmtime_pooling_t *, uint32_t)) \
  X(wasmtime_pooling_allocation_config_total_tables_set, void, (wasmtime_pooling_t *, uint32_t)) \
  X(wasmtime_pooling_allocation_config_total_component_instances_set, void, (wasmtime_pooling_t *, uint32_t)) \
  X(wasmtime_pooling_allocation_config_total_stacks_set, void, (wasmtime_pooling_t *, uint32_t)) \
  X(wasmtime_pooling_allocation_config_max_memory_size_set, void, (wasmtime_pooling_t *, size_t)) \
  X(wasmtime_pooling_allocation_config_max_core_instance_size_set, void, (wasmtime_pooling_t *, size_t)) \
  X(wasmtime_pooling_allocation_config_max_tables_per_module_set, void, (wasmtime_pooling_t *, uint32_t)) \
  X(wasmtime_pooling_allocation_config_table_elements_set, void, (wasmtime_pooling_t *, size_t)) \
  X(wasmtime_pooling_allocation_config_linear_memory_keep_resident_set, void, (wasmtime_pooling_t *, size_t)) \
  X(wasmtime_pooling_allocation_config_table_keep_resident_set, void, (wasmtime_pooling_t *, size_t)) \
  X(wasmtime_pooling_allocation_config_max_unused_warm_slots_set, void, (wasmtime_pooling_t *, uint32_t)) \
  X(wasmtime_engine_increment_epoch, void, (wasm_engine_t *)) \
  X(wasmtime_module_new, wasmtime_error_t *, (wasm_engine_t *, const uint8_t *, size_t, wasmtime_module_t **)) \
  X(wasmtime_module_delete, void, (wasmtime_module_t *)) \
  X(wasmtime_module_serialize, wasmtime_error_t *, (wasmtime_module_t *, wasm_byte_vec_t *)) \
  X(wasmtime_module_deserialize, wasmtime_error_t *, \
    (wasm_engine_t *, const uint8_t *, size_t, wasmtime_module_t **)) \
  X(wasmtime_module_imports, void, (const wasmtime_module_t *, wasm_importtype_vec_t *)) \
  X(wasmtime_module_exports, void, (const wasmtime_module_t *, wasm_exporttype_vec_t *)) \
  X(wasmtime_store_new, wasmtime_store_t *, (wasm_engine_t *, void *, void (*)(void *))) \
  X(wasmtime_store_delete, void, (wasmtime_store_t *)) \
  X(wasmtime_store_context, wasmtime_context_t *, (wasmtime_store_t *)) \
  X(wasmtime_store_limiter, void, (wasmtime_store_t *, int64_t, int64_t, int64_t, int64_t, int64_t)) \
  X(wasmtime_store_epoch_deadline_callback, void, \
    (wasmtime_store_t *, wasmtime_deadline_t, void *, void (*)(void *))) \
  X(wasmtime_context_set_epoch_deadline, void, (wasmtime_context_t *, uint64_t)) \
  X(wasmtime_context_set_fuel, wasmtime_error_t *, (wasmtime_context_t *, uint64_t)) \
  X(wasmtime_context_get_data, void *, (const wasmtime_context_t *)) \
  X(wasmtime_linker_new, wasmtime_linker_t *, (wasm_engine_t *)) \
  X(wasmtime_linker_define_func_unchecked, wasmtime_error_t *, \
    (wasmtime_linker_t *, const char *, size_t, const char *, size_t, const wasm_functype_t *, \
     wasmtime_unchecked_t, void *, void (*)(void *))) \
  X(wasmtime_linker_instantiate_pre, wasmtime_error_t *, \
    (const wasmtime_linker_t *, const wasmtime_module_t *, wasmtime_instance_pre_t **)) \
  X(wasmtime_instance_pre_delete, void, (wasmtime_instance_pre_t *)) \
  X(wasmtime_instance_pre_instantiate, wasmtime_error_t *, \
    (const wasmtime_instance_pre_t *, wasmtime_context_t *, wasmtime_instance_t *, wasm_trap_t **)) \
  X(wasmtime_instance_export_get, bool, \
    (wasmtime_context_t *, const wasmtime_instance_t *, const char *, size_t, wasmtime_extern_t *)) \
  X(wasmtime_caller_context, wasmtime_context_t *, (wasmtime_caller_t *)) \
  X(wasmtime_caller_export_get, bool, (wasmtime_caller_t *, const char *, size_t, wasmtime_extern_t *)) \
  X(wasmtime_memory_data, uint8_t *, (const wasmtime_context_t *, const wasmtime_memory_t *)) \
  X(wasmtime_memory_data_size, size_t, (const wasmtime_context_t *, const wasmtime_memory_t *)) \
  X(wasmtime_func_call_unchecked, wasmtime_error_t *, \
    (wasmtime_context_t *, const wasmtime_func_t *, wasmtime_val_raw_t *, size_t, wasm_trap_t **))

#define DECLARE(name, result, parameters) extern result(*name) parameters;
WASMTIME_API(DECLARE)
#undef DECLARE

/* Opens the shared library. Gives NULL, or the words of what is wrong. */
const char *load_wasmtime(const char *path);

#endif
