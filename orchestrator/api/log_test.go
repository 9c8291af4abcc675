package api_test

import (
	"net/http"
	"testing"

	"github.com/kernexhq/kernex/orchestrator/looptest"
	"github.com/kernexhq/kernex/pkg/fleet"
	"github.com/kernexhq/kernex/pkg/protocol"
)

func TestADevicesLogIsAskedForAndListed(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	id := e.device(fleet.Labels{"site": "berlin"}).ID
	e.call("POST", "/devices/"+id+"/logs", map[string]any{"lines": 10}).refused(http.StatusConflict, fleet.CodeConflict)
	e.call("POST", "/devices/"+id+"/restart", nil).refused(http.StatusConflict, fleet.CodeConflict)
	if _, err := e.db.ApplyState(t.Context(), id, looptest.State(1), looptest.Allow); err != nil {
		t.Fatal(err)
	}
	var first, again, other fleet.CommandRef
	key := header{"Idempotency-Key", "k"}
	e.call("POST", "/devices/"+id+"/logs", map[string]any{"lines": 10, "since": "2026-01-02T03:04:05Z", "follow_s": 60}, key).into(http.StatusAccepted, &first)
	e.call("POST", "/devices/"+id+"/logs", map[string]any{"lines": 10, "since": "2026-01-02T03:04:05Z", "follow_s": 60}, key).into(http.StatusAccepted, &again)
	e.call("POST", "/devices/"+id+"/restart", nil).into(http.StatusAccepted, &other)
	if first.Command == "" || first != again || other == first {
		t.Errorf("%+v, %+v, %+v", first, again, other)
	}
	if n := e.count(`SELECT count(*) FROM commands WHERE type = 'logs' AND body = '{"lines": 10, "since": 1767323045000, "follow_s": 60}'`); n != 1 {
		t.Errorf("%d such commands", n)
	}
	for _, body := range []string{`{}`, `{"lines":-1}`, `{"lines":1001}`, `{"follow_s":3601}`, `{"lines":1,"more":1}`, `{"lines":1,"since":"yesterday"}`} {
		e.call("POST", "/devices/"+id+"/logs", body).refused(http.StatusBadRequest, fleet.CodeInvalid)
	}
	if err := e.db.StoreLogs(t.Context(), []string{id}, []protocol.Log{{Lines: []protocol.LogLine{{Time: 1, Source: "run", Message: "one"}, {Time: 2, Source: "agent", Level: "warn", Message: "two"}}}}); err != nil {
		t.Fatal(err)
	}
	var list fleet.List[fleet.LogLine]
	e.call("GET", "/devices/"+id+"/logs"+query("level", "warn", "from", "1970-01-01T00:00:00Z"), nil).into(http.StatusOK, &list)
	if len(list.Items) != 1 || list.Items[0].Message != "two" || list.Total != 1 {
		t.Errorf("%+v", list)
	}
	e.call("GET", "/devices/"+id+"/logs"+query("after", "0", "limit", "1"), nil).into(http.StatusOK, &list)
	if len(list.Items) != 1 || list.Items[0].Message != "one" || list.NextCursor != "" {
		t.Errorf("%+v", list)
	}
	for _, q := range []string{query("level", "loud"), query("after", "x"), query("after", "-1"), query("from", "yesterday"), query("cursor", "x"), query("limit", "0")} {
		e.call("GET", "/devices/"+id+"/logs"+q, nil).refused(http.StatusBadRequest, fleet.CodeInvalid)
	}
	elsewhere := as(e.token(fleet.RoleOperator, "site=paris"))
	e.call("GET", "/devices/"+id+"/logs", nil, elsewhere).refused(http.StatusNotFound, fleet.CodeNotFound)
	e.call("POST", "/devices/"+id+"/logs", map[string]any{"lines": 1}, elsewhere).refused(http.StatusNotFound, fleet.CodeNotFound)
	e.call("POST", "/devices/"+id+"/restart", nil, elsewhere).refused(http.StatusNotFound, fleet.CodeNotFound)
}
