-- What wrk found out, as one line of JSON; with the CPU time of all its threads.
local ffi = require("ffi")
ffi.cdef [[
   struct rauta_timespec { long seconds, nanoseconds; };
   int clock_gettime(int clock, struct rauta_timespec *time);
]]
local CLOCK_PROCESS_CPUTIME_ID = 2

function done(summary, latency, requests)
   local errors, cpu = summary.errors, ffi.new("struct rauta_timespec")
   ffi.C.clock_gettime(CLOCK_PROCESS_CPUTIME_ID, cpu)
   print(string.format(
      '{"requests": %d, "duration_us": %d, "cpu_us": %d, '
      .. '"errors": {"connect": %d, "read": %d, "write": %d, "status": %d, "timeout": %d}, '
      .. '"latency_us": {"p50": %d, "p90": %d, "p99": %d, "max": %d}}',
      summary.requests, summary.duration, tonumber(cpu.seconds) * 1e6 + tonumber(cpu.nanoseconds) / 1e3,
      errors.connect, errors.read, errors.write, errors.status, errors.timeout,
      latency:percentile(50), latency:percentile(90), latency:percentile(99), latency.max))
end
