package api

import (
	"encoding/json"
	"net/http"
	"reflect"

	"github.com/danielgtaylor/huma/v2"
)

func typeOf(v any) reflect.Type { return reflect.TypeOf(v) }

// OpenAPI returns the OpenAPI 3.1 document of the API as YAML: what
// schema/openapi.yaml holds.
func OpenAPI() ([]byte, error) { return New(Config{}).huma.OpenAPI().YAML() }

// specJSON encodes the document; it is made of this program's own types, so a
// failure is a mistake in them.
func specJSON(o *huma.OpenAPI) []byte {
	b, err := json.Marshal(o)
	if err != nil {
		panic("encode the OpenAPI document: " + err.Error())
	}
	return b
}

func (a *API) openapi(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(a.spec) // the client is gone
}
