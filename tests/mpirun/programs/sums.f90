! A Fortran program that sums: reals, integers, in place, to a root. Writes to PREFIX.RANK.
program sums
  use mpi
  implicit none
  integer :: rank, ranks, code, request, unit
  integer :: whole(3), wholes(3)
  real :: single(2)
  double precision :: values(4), total(4)
  character(len=4000) :: prefix
  character(len=8) :: number

  call MPI_Init(code)
  call MPI_Comm_rank(MPI_COMM_WORLD, rank, code)
  call MPI_Comm_size(MPI_COMM_WORLD, ranks, code)
  call get_command_argument(1, prefix)
  write (number, '(i0)') rank
  open (newunit=unit, file=trim(prefix)//'.'//trim(number), action='write')

  values = [1d0, 2d0, -3d0, dble(rank)]
  call MPI_Allreduce(values, total, 4, MPI_DOUBLE_PRECISION, MPI_SUM, MPI_COMM_WORLD, code)
  write (unit, '(a,4f12.4)') 'double', total

  single = [real(rank), 0.5]
  call MPI_Allreduce(MPI_IN_PLACE, single, 2, MPI_REAL, MPI_SUM, MPI_COMM_WORLD, code)
  write (unit, '(a,2f12.4)') 'in_place', single

  whole = [rank, 2, -1]
  wholes = 0
  call MPI_Reduce(whole, wholes, 3, MPI_INTEGER, MPI_SUM, 0, MPI_COMM_WORLD, code)
  if (rank == 0) write (unit, '(a,3i6)') 'reduce', wholes

  call MPI_Iallreduce(whole, wholes, 3, MPI_INTEGER, MPI_SUM, MPI_COMM_WORLD, request, code)
  call MPI_Wait(request, MPI_STATUS_IGNORE, code)
  write (unit, '(a,3i6)') 'iallreduce', wholes

  call MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN, code)
  call MPI_Allreduce(values, total, 4, MPI_DOUBLE_PRECISION, MPI_MAX, MPI_COMM_WORLD, code)
  write (unit, '(a,i2)') 'refused', merge(1, 0, code /= MPI_SUCCESS)

  write (unit, '(a)') 'end'
  close (unit)
  call MPI_Finalize(code)
end program sums
