package api_test

import (
	"net/http"
	"sync"
	"testing"

	"github.com/kernexhq/kernex/pkg/fleet"
)

func TestARepeatWithTheSameKeyIsTheSameDeployment(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.bundle("edge", "1.0.0")
	body := map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "target_devices": []string{e.device(nil).ID}}
	key := header{"Idempotency-Key", "abc"}
	var first, second fleet.Deployment
	e.deploy(body, key).into(http.StatusCreated, &first)
	e.end(first.ID, "success", nil) // the stored answer holds, not the state since
	e.deploy(body, key).into(http.StatusCreated, &second)
	if first.ID != second.ID || second.Status != fleet.DeploymentPending || second.Progress["pending"] != 1 {
		t.Errorf("first %+v, then %+v", first, second)
	}
	body["description"] = "other"
	e.deploy(body, key).refused(http.StatusConflict, fleet.CodeIdempotency)
	e.call("POST", "/deployments/"+first.ID+"/cancel", nil, key).refused(http.StatusConflict, fleet.CodeIdempotency)
	// Another token's key is another key.
	e.deploy(body, key, as(e.token(fleet.RoleOperator, ""))).into(http.StatusCreated, &second)
	if n := e.count(`SELECT count(*) FROM deployments`); n != 2 || second.ID == first.ID {
		t.Errorf("%d deployments", n)
	}
	e.deploy(body, header{"Idempotency-Key", "a b"}).refused(http.StatusBadRequest, fleet.CodeInvalid)
}

func TestAtOnceWithTheSameKeyMakesOneDeployment(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	e.bundle("edge", "1.0.0")
	body := map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "target_devices": []string{e.device(nil).ID}}
	var wg sync.WaitGroup
	ids := make([]string, 8)
	for i := range ids {
		wg.Go(func() {
			var dep fleet.Deployment
			e.deploy(body, header{"Idempotency-Key", "race"}).into(http.StatusCreated, &dep)
			ids[i] = dep.ID
		})
	}
	wg.Wait()
	for _, id := range ids {
		if id != ids[0] {
			t.Errorf("ids %v", ids)
			break
		}
	}
	if n := e.count(`SELECT count(*) FROM deployments`); n != 1 {
		t.Errorf("%d deployments", n)
	}
}

func TestARefusedRequestDoesNotSpendItsKey(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	body := map[string]any{"bundle": "edge", "bundle_version": "1.0.0", "target_devices": []string{e.device(nil).ID}}
	key := header{"Idempotency-Key", "later"}
	e.deploy(body, key).refused(http.StatusNotFound, fleet.CodeNotFound)
	e.bundle("edge", "1.0.0")
	e.deploy(body, key).into(http.StatusCreated, nil)
}

func TestTheSecretOfATokenIsStoredNowhere(t *testing.T) {
	t.Parallel()
	e := newEnv(t)
	key := header{"Idempotency-Key", "token"}
	body := map[string]any{"name": "ci", "role": "operator"}
	var first, second struct{ ID, Token string }
	e.call("POST", "/tokens", body, key).into(http.StatusCreated, &first)
	e.call("POST", "/tokens", body, key).into(http.StatusCreated, &second)
	if first.ID != second.ID || first.Token == "" || second.Token != "" {
		t.Errorf("first %+v, then %+v", first, second)
	}
	if n := e.count(`SELECT count(*) FROM idempotency_keys WHERE position(convert_to($1, 'UTF8') IN response) > 0`, first.Token); n != 0 {
		t.Error("the secret is in the stored answer")
	}
	if n := e.count(`SELECT count(*) FROM audit WHERE after::text LIKE '%' || $1 || '%'`, first.Token); n != 0 {
		t.Error("the secret is in the audit log")
	}
}
