// Structs that Python fills. Each keeps its own declaration as text (the preprocessor drops comments), from which Python
// builds the struct that it passes: there is one list of fields, and its order cannot differ between the two languages.
// All fields are 8 bytes wide: int64_t, double, pointers, other such structs, and arrays of int64_t.
#pragma once

#include <cstdint>

#define VMAMBA_STRUCT(Name, ...)                        \
  struct Name {                                         \
    __VA_ARGS__                                         \
    static constexpr char declaration[] = #__VA_ARGS__; \
  }
