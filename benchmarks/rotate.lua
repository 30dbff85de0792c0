-- Sends prepared HTTP/1.1 requests in turn; the file (wrk's argument after --) is a row of [length, 4 bytes LE][request].
-- Events get ids that none before them had, in this run or another.
-- At the end one line of JSON with exact counts, since wrk's own text rounds them.

local requests, at, sent = {}, 0, os.time() * 1e6

-- A request, or the two parts of an event around its id.
function prepared(request)
  local _, _, before, after = request:find("\r\nce%-id: ()%d+()")
  if before == nil then return {before = request} end
  return {before = request:sub(1, before - 1), after = request:sub(after)}
end

function init(arguments)
  local file = assert(io.open(arguments[1], "rb"))
  local data = file:read("*a")
  file:close()
  local position = 1
  while position <= #data do
    local a, b, c, d = data:byte(position, position + 3)
    local length = a + b * 256 + c * 65536 + d * 16777216
    requests[#requests + 1] = prepared(data:sub(position + 4, position + 3 + length))
    position = position + 4 + length
  end
end

function request()
  at = at % #requests + 1
  local one = requests[at]
  if one.after == nil then return one.before end
  sent = sent + 1
  return one.before .. string.format("%.0f", sent) .. one.after
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    'JSON {"requests":%d,"duration_us":%d,"not_2xx":%d,"socket":%d,"timeout":%d,"p50_us":%d,"p99_us":%d}\n',
    summary.requests, summary.duration, errors.status, errors.connect + errors.read + errors.write, errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
