# pkv_library(NAME SOURCES... PUBLIC_HEADERS... DEPS... PRIVATE_DEPS...)
#
# The only way to add a library: makes the pkv:: alias, the set of public headers, C++20 and
# warnings. PUBLIC_HEADERS are relative to the caller's folder, stand under its include/ and are
# included as "pkv/..."; every other header is included by its path from the repository root.
# deploy/CMakeLists.txt installs what the SDK consists of.
function(pkv_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;PUBLIC_HEADERS;DEPS;PRIVATE_DEPS" ${ARGN})
  add_library(${name} STATIC ${ARG_SOURCES})
  string(REGEX REPLACE "^pkv_" "" short ${name})
  add_library(pkv::${short} ALIAS ${name})
  set_target_properties(${name} PROPERTIES EXPORT_NAME ${short} POSITION_INDEPENDENT_CODE ON)
  target_compile_features(${name} PUBLIC cxx_std_20)
  if(ARG_PUBLIC_HEADERS)
    target_sources(${name} PUBLIC FILE_SET HEADERS
      BASE_DIRS ${CMAKE_CURRENT_SOURCE_DIR}/include FILES ${ARG_PUBLIC_HEADERS})
  endif()
  pkv_compile_options(${name})
  _pkv_check_locks(${name})
  target_link_libraries(${name} PUBLIC ${ARG_DEPS} PRIVATE ${ARG_PRIVATE_DEPS})
endfunction()

# pkv_executable(NAME SOURCES... DEPS...): a binary of the project, installed.
function(pkv_executable name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  pkv_compile_options(${name})
  _pkv_check_locks(${name})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS})
  install(TARGETS ${name} COMPONENT services)
endfunction()

# What every target of the project is compiled with.
function(pkv_compile_options name)
  # Private includes are spelled from the repository root: "kvstore/store/block_store.h".
  target_include_directories(${name} PRIVATE ${PROJECT_SOURCE_DIR})
  target_compile_features(${name} PRIVATE cxx_std_20)
  target_compile_definitions(${name} PRIVATE PKV_VERSION="${PROJECT_VERSION}")
  target_compile_options(${name} PRIVATE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wno-unused-parameter;-Werror=return-type;-Werror=unused-result>
    # CMake 3.25 knows no C++20 for nvcc and drops CUDA_STANDARD 20 without a word.
    $<$<COMPILE_LANGUAGE:CUDA>:--std=c++20;--expt-relaxed-constexpr>)
  if(PKV_WITH_CUDA)
    set_target_properties(${name} PROPERTIES CUDA_ARCHITECTURES 90a)
    target_compile_definitions(${name} PRIVATE PKV_WITH_CUDA)
  endif()
endfunction()

# Clang's thread-safety analysis of what is not a test.
option(PKV_CHECK_LOCKS "Make what Clang's thread-safety analysis finds an error" OFF)
function(_pkv_check_locks name)
  if(PKV_CHECK_LOCKS)
    target_compile_options(${name} PRIVATE
      $<$<COMPILE_LANGUAGE:CXX>:-Werror=thread-safety;-Werror=thread-safety-beta>)
  endif()
endfunction()

# Sets `out` to `target` and everything it links, directly or not, privately or not.
function(_pkv_closure target out)
  set(seen "")
  set(queue ${target})
  while(queue)
    list(POP_FRONT queue current)
    if(current IN_LIST seen)
      continue()
    endif()
    list(APPEND seen ${current})
    if(TARGET ${current})
      get_target_property(aliased ${current} ALIASED_TARGET)
      if(aliased)
        list(APPEND queue ${aliased})
      endif()
      foreach(property LINK_LIBRARIES INTERFACE_LINK_LIBRARIES)
        get_target_property(linked ${current} ${property})
        if(linked)
          foreach(dep ${linked})
            string(REGEX REPLACE "^\\$<LINK_ONLY:(.*)>$" "\\1" dep "${dep}")
            list(APPEND queue "${dep}")
          endforeach()
        endif()
      endforeach()
    endif()
  endwhile()
  set(${out} "${seen}" PARENT_SCOPE)
endfunction()

# Fails the configure step when `target` reaches any of the named targets, however indirectly.
function(pkv_forbid_dependency target)
  _pkv_closure(${target} closure)
  foreach(forbidden ${ARGN})
    if(forbidden IN_LIST closure)
      message(FATAL_ERROR "layering: ${target} must not depend on ${forbidden}")
    endif()
  endforeach()
endfunction()
