"""Every MPI function by name: which are protected, which are counted and pass, which move no data.

The table is written by hand from the MPI standard (5.0) and both libraries' extensions, so that a
new function is one that nobody has judged: a test fails on it, and the library counts it.
"""

from __future__ import annotations

import re
from enum import StrEnum


class Kind(StrEnum):
    """What the library does with a call.

    ``protected``: clipped, noised and charged, or refused. ``counted``: moves data to other
    processes or files, is not covered, and is named in the report. ``refused``: would sum
    contributions in a form that nothing protects, or start what nothing protects. ``local``: moves
    no data of the program (group and window handling, waiting, types, a barrier).
    """

    PROTECTED = "protected"
    COUNTED = "counted"
    REFUSED = "refused"
    LOCAL = "local"


def _names(prefix: str, text: str) -> frozenset[str]:
    return frozenset(f"{prefix}{name}" for name in text.split())


PROTECTED = _names("MPI_", "Allreduce Reduce Iallreduce Ireduce Allreduce_init Reduce_init")
"""Sums of one contribution a rank."""

_COLLECTIVE = """
    Allgather Allgatherv Alltoall Alltoallv Alltoallw Bcast Exscan Gather Gatherv
    Reduce_scatter Reduce_scatter_block Scan Scatter Scatterv Neighbor_allgather
    Neighbor_allgatherv Neighbor_alltoall Neighbor_alltoallv Neighbor_alltoallw
"""
_POINT_TO_POINT = """
    Send Bsend Ssend Rsend Isend Ibsend Issend Irsend Send_init Bsend_init Ssend_init
    Rsend_init Psend_init Precv_init Pready Pready_list Pready_range Recv Irecv Recv_init
    Mrecv Imrecv Sendrecv Sendrecv_replace Isendrecv Isendrecv_replace Start Startall
"""
# Memory that other ranks reach: windows of shared memory move data by plain stores, unseen.
_ONE_SIDED = """
    Put Get Accumulate Get_accumulate Fetch_and_op Compare_and_swap Rput Rget Raccumulate
    Rget_accumulate Win_allocate_shared Win_shared_query
"""
# Ways to processes outside. A sum with them is none on an intercommunicator, and after a merge it
# has no lattice in the plan, so it is refused; what they send passes.
_PROCESSES = """
    Comm_accept Comm_connect Comm_join
"""
_FILES = """
    File_iread File_iread_all File_iread_at File_iread_at_all File_iread_shared File_iwrite
    File_iwrite_all File_iwrite_at File_iwrite_at_all File_iwrite_shared File_read
    File_read_all File_read_all_begin File_read_all_end File_read_at File_read_at_all
    File_read_at_all_begin File_read_at_all_end File_read_ordered File_read_ordered_begin
    File_read_ordered_end File_read_shared File_write File_write_all File_write_all_begin
    File_write_all_end File_write_at File_write_at_all File_write_at_all_begin
    File_write_at_all_end File_write_ordered File_write_ordered_begin File_write_ordered_end
    File_write_shared
"""
_EXTENSIONS = """
    Send_enqueue Isend_enqueue Recv_enqueue Irecv_enqueue Stream_send Stream_isend Stream_recv
    Stream_irecv Comm_agree Comm_iagree
"""
COUNTED = (
    _names("MPI_", _COLLECTIVE)
    | frozenset(
        f"MPI_{form}"
        for name in _COLLECTIVE.split()
        for form in (f"I{name[0].lower()}{name[1:]}", f"{name}_init")
    )
    | _names("MPI_", f"{_POINT_TO_POINT} {_ONE_SIDED} {_PROCESSES} {_FILES}")
    | _names("MPIX_", _EXTENSIONS)
)
"""Calls that move data and pass as they are."""

_SPAWN = (
    "its programs would run without dither, their sums not private; start all ranks by dither "
    "mpirun -n"
)
_ALLOW = ", or run with --allow-clear {name} if they see nothing private"
REASONS = {
    "MPIX_Allreduce_enqueue": "it would send contributions in clear; use MPI_Allreduce",
    "MPIX_Threadcomm_init": "its ranks are threads, which have no accounts; sum over processes",
    "MPI_Comm_spawn": _SPAWN + _ALLOW.format(name="MPI_Comm_spawn"),
    "MPI_Comm_spawn_multiple": _SPAWN + _ALLOW.format(name="MPI_Comm_spawn_multiple"),
}
"""Why a call is refused, and what to do instead."""

REFUSED = frozenset(REASONS)
"""Sums of contributions that no protected form exists for (MPICH's: on a stream of a device; of
threads as ranks), and starts of programs that would run unprotected."""

ALLOWABLE = _names("MPI_", "Comm_spawn Comm_spawn_multiple")
"""Refused calls that a user may let pass by name."""

_LOCAL = """
    Abi_get_fortran_booleans Abi_get_fortran_info Abi_get_info Abi_get_version
    Abi_set_fortran_booleans Abi_set_fortran_info Abort Add_error_class Add_error_code
    Add_error_string Address Aint_add Aint_diff Alloc_mem Attr_delete Attr_get Attr_put
    Barrier Barrier_init Buffer_attach Buffer_detach Buffer_flush Buffer_iflush Cancel
    Cart_coords Cart_create Cart_get Cart_map Cart_rank Cart_shift Cart_sub Cartdim_get
    Close_port Comm_attach_buffer Comm_call_errhandler Comm_compare Comm_create
    Comm_create_errhandler Comm_create_from_group Comm_create_group Comm_create_keyval
    Comm_delete_attr Comm_detach_buffer Comm_disconnect Comm_dup Comm_dup_with_info
    Comm_flush_buffer Comm_free Comm_free_keyval Comm_get_attr Comm_get_errhandler
    Comm_get_info Comm_get_name Comm_get_parent Comm_group Comm_idup Comm_idup_with_info
    Comm_iflush_buffer Comm_rank Comm_remote_group Comm_remote_size Comm_set_attr
    Comm_set_errhandler Comm_set_info Comm_set_name Comm_size Comm_split Comm_split_type
    Comm_test_inter Dims_create Dist_graph_create Dist_graph_create_adjacent
    Dist_graph_neighbors Dist_graph_neighbors_count Errhandler_create Errhandler_free
    Errhandler_get Errhandler_set Error_class Error_string File_call_errhandler File_close
    File_create_errhandler File_delete File_get_amode File_get_atomicity File_get_byte_offset
    File_get_errhandler File_get_group File_get_info File_get_position
    File_get_position_shared File_get_size File_get_type_extent File_get_view File_open
    File_preallocate File_seek File_seek_shared File_set_atomicity File_set_errhandler
    File_set_info File_set_size File_set_view File_sync Finalize Finalized Free_mem
    Get_address Get_count Get_elements Get_elements_x Get_hw_resource_info Get_library_version
    Get_processor_name Get_version Graph_create Graph_get Graph_map Graph_neighbors
    Graph_neighbors_count Graphdims_get Grequest_complete Grequest_start Group_compare
    Group_difference Group_excl Group_free Group_from_session_pset Group_incl
    Group_intersection Group_range_excl Group_range_incl Group_rank Group_size
    Group_translate_ranks Group_union Ibarrier Improbe Info_create Info_create_env Info_delete
    Info_dup Info_free Info_get Info_get_nkeys Info_get_nthkey Info_get_string
    Info_get_valuelen Info_set Init Init_thread Initialized Intercomm_create
    Intercomm_create_from_groups Intercomm_merge Iprobe Is_thread_main Keyval_create
    Keyval_free Lookup_name Mprobe Op_commutative Op_create Op_free Open_port Pack
    Pack_external Pack_external_size Pack_size Parrived Pcontrol Probe Publish_name
    Query_thread Reduce_local Register_datarep Remove_error_class Remove_error_code
    Remove_error_string Request_free Request_get_status Request_get_status_all
    Request_get_status_any Request_get_status_some Session_attach_buffer
    Session_call_errhandler Session_create_errhandler Session_detach_buffer Session_finalize
    Session_flush_buffer Session_get_errhandler Session_get_info Session_get_nth_pset
    Session_get_num_psets Session_get_pset_info Session_iflush_buffer Session_init
    Session_set_errhandler Session_set_info Status_get_error Status_get_source Status_get_tag
    Status_set_cancelled Status_set_elements Status_set_elements_x Status_set_error
    Status_set_source Status_set_tag Test Test_cancelled Testall Testany Testsome Topo_test
    Type_commit Type_contiguous Type_create_darray Type_create_f90_complex
    Type_create_f90_integer Type_create_f90_real Type_create_hindexed
    Type_create_hindexed_block Type_create_hvector Type_create_indexed_block
    Type_create_keyval Type_create_resized Type_create_struct Type_create_subarray
    Type_delete_attr Type_dup Type_extent Type_free Type_free_keyval Type_get_attr
    Type_get_contents Type_get_envelope Type_get_extent Type_get_extent_x Type_get_name
    Type_get_true_extent Type_get_true_extent_x Type_get_value_index Type_hindexed
    Type_hvector Type_indexed Type_lb Type_match_size Type_set_attr Type_set_name Type_size
    Type_size_x Type_struct Type_ub Type_vector Unpack Unpack_external Unpublish_name Wait
    Waitall Waitany Waitsome Win_allocate Win_attach Win_call_errhandler Win_complete
    Win_create Win_create_dynamic Win_create_errhandler Win_create_keyval Win_delete_attr
    Win_detach Win_fence Win_flush Win_flush_all Win_flush_local Win_flush_local_all Win_free
    Win_free_keyval Win_get_attr Win_get_errhandler Win_get_group Win_get_info Win_get_name
    Win_lock Win_lock_all Win_post Win_set_attr Win_set_errhandler Win_set_info Win_set_name
    Win_start Win_sync Win_test Win_unlock Win_unlock_all Win_wait Wtick Wtime
"""
_LOCAL_EXTENSIONS = """
    Async_get_state Async_spawn Async_start Comm_ack_failed Comm_create_errhandler_x
    Comm_failure_ack Comm_failure_get_acked Comm_get_failed Comm_get_stream Comm_is_revoked
    Comm_revoke Comm_shrink Comm_test_threadcomm File_create_errhandler_x GPU_query_support
    Grequest_class_allocate Grequest_class_create Grequest_start Info_set_hex Op_create_x
    Query_cuda_support Query_hip_support Query_rocm_support Query_ze_support
    Request_is_complete Session_create_errhandler_x Start_progress_thread Stop_progress_thread
    Stream_comm_create Stream_comm_create_multiplex Stream_create Stream_free Stream_progress
    Threadcomm_finish Threadcomm_free Threadcomm_start Type_iov Type_iov_len
    Wait_enqueue Waitall_enqueue Win_create_errhandler_x
"""
LOCAL = _names("MPI_", _LOCAL) | _names("MPIX_", _LOCAL_EXTENSIONS)
"""Calls that move no data of the program."""

# Tools' own interface, and handles as integers or Fortran's.
_LOCAL_PATTERN = re.compile(
    r"MPI_T_\w+|MPI_[A-Z][a-z]+_(?:toint|fromint|c2f|f2c|c2f08|f082c|f082f|f2f08)"
)

# native/mpi defines these itself: they start what it protects, too.
BY_HAND = frozenset({"MPI_Start", "MPI_Startall"})


def base_name(name: str) -> str:
    """Return the name without the mark of large counts: ``MPI_Send`` of ``MPI_Send_c``."""
    return name.removesuffix("_c")


def kind_of(name: str) -> Kind | None:
    """Return what happens to a function, by its C name in either form; None if not judged yet."""
    base = base_name(name)
    for names, kind in (
        (PROTECTED, Kind.PROTECTED),
        (COUNTED, Kind.COUNTED),
        (REFUSED, Kind.REFUSED),
        (LOCAL, Kind.LOCAL),
    ):
        if base in names:
            return kind
    return Kind.LOCAL if _LOCAL_PATTERN.fullmatch(name) else None
