-- Requests for two paths by turns: the URL's, and the script's argument. The report is wrk_report.lua's.
--
-- wrk has no state for a connection: its turns are those of a thread. With an odd number of connections that are served
-- one after the other each connection alternates.
dofile(debug.getinfo(1, "S").source:match("^@(.*/)") .. "wrk_report.lua")

local first, second, turn

function init(args)
   first, second, turn = wrk.format(), wrk.format(nil, args[1]), false
end

function request()
   turn = not turn
   return turn and first or second
end
