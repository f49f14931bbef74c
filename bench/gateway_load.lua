-- The load of bench/gateway.py. wrk … -- BYTES CONVERSATIONS stream|whole named|unnamed
wrk.method = "POST"
wrk.path = "/v1/chat/completions"
wrk.headers["content-type"] = "application/json"
local requests, sent = {}, 0

function init(args)
  local stream = args[3] == "stream" and '"stream":true,' or ""
  local prompt = string.rep("word ", tonumber(args[1]) / 5)
  local body = '{"model":"mock",' .. stream .. '"messages":[{"role":"user","content":"' .. prompt .. '"}]}'
  for i = 1, tonumber(args[2]) do
    if args[4] == "named" then wrk.headers["x-session-id"] = "conversation-" .. i end
    requests[i] = wrk.format(nil, nil, nil, body)
  end
end

function request()
  sent = sent % #requests + 1
  return requests[sent]
end

function done(summary, latency)
  local e = summary.errors
  local errors = e.connect + e.read + e.write + e.status + e.timeout
  local form = '\nRESULT {"requests": %d, "seconds": %f, "errors": %d, "p50_ms": %f, "p99_ms": %f}\n'
  local p50_ms, p99_ms = latency:percentile(50) / 1e3, latency:percentile(99) / 1e3
  io.write(string.format(form, summary.requests, summary.duration / 1e6, errors, p50_ms, p99_ms))
end
