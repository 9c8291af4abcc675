package api

import (
	"bytes"
	"html/template"
	"net/http"
	"sort"

	"github.com/danielgtaylor/huma/v2"
)

// page is the API for people: the OpenAPI document without a script, so that it
// reads in any browser and without the internet.
var page = template.Must(template.New("docs").Parse(`<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{{.Title}}</title>
<style>body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1c2330}
h2{margin-top:2.5rem;text-transform:capitalize}details{border:1px solid #d5dbe5;border-radius:6px;margin:.5rem 0;padding:.4rem .8rem}
summary{cursor:pointer}code{font:13px ui-monospace,monospace}.m{display:inline-block;width:4rem;font-weight:600}.r{float:right;color:#667}
td,th{text-align:left;padding:.1rem 1rem .1rem 0;vertical-align:top}</style></head><body>
<h1>{{.Title}}</h1><p>{{.Description}} Base path <code>{{.Base}}</code>. For programs: <a href="/openapi.json">openapi.json</a>.</p>
{{range .Groups}}<h2>{{.Name}}</h2>
{{range .Calls}}<details><summary><span class="m">{{.Method}}</span><code>{{.Path}}</code> {{.Summary}} <span class="r">{{.Role}}</span></summary>
<p>{{.Description}}</p>
{{if .Fields}}<table><tr><th>Name</th><th>In</th><th>Type</th><th>Meaning</th></tr>
{{range .Fields}}<tr><td><code>{{.Name}}</code>{{if .Required}} *{{end}}</td><td>{{.In}}</td><td>{{.Type}}</td><td>{{.Doc}}</td></tr>{{end}}</table>{{end}}
<p>Answers: {{range .Answers}}<code>{{.}}</code> {{end}}</p></details>
{{end}}{{end}}</body></html>
`))

type docGroup struct {
	Name  string
	Calls []docCall
}

type docCall struct {
	Method, Path, Summary, Description, Role string
	Fields                                   []docField
	Answers                                  []string
}

type docField struct {
	Name, In, Type, Doc string
	Required            bool
}

// docs serves the page.
func (a *API) docs(w http.ResponseWriter, r *http.Request) {
	o := a.huma.OpenAPI()
	var b bytes.Buffer
	err := page.Execute(&b, map[string]any{"Title": o.Info.Title, "Description": o.Info.Description, "Base": base, "Groups": docGroups(o)})
	if err != nil {
		a.fail(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	_, _ = w.Write(b.Bytes()) // the reader is gone
}

func docGroups(o *huma.OpenAPI) []docGroup {
	byTag := map[string][]docCall{}
	for path, item := range o.Paths {
		for method, op := range map[string]*huma.Operation{
			http.MethodGet: item.Get, http.MethodPost: item.Post, http.MethodPut: item.Put, http.MethodPatch: item.Patch, http.MethodDelete: item.Delete,
		} {
			if op == nil {
				continue
			}
			c := docCall{Method: method, Path: path, Summary: op.Summary, Description: op.Description, Fields: docFields(o, op)}
			c.Role, _ = op.Extensions["x-kernex-role"].(string)
			for status := range op.Responses {
				c.Answers = append(c.Answers, status)
			}
			sort.Strings(c.Answers)
			byTag[op.Tags[0]] = append(byTag[op.Tags[0]], c)
		}
	}
	groups := make([]docGroup, 0, len(byTag))
	for tag, calls := range byTag {
		sort.Slice(calls, func(i, j int) bool {
			return calls[i].Path < calls[j].Path || calls[i].Path == calls[j].Path && calls[i].Method < calls[j].Method
		})
		groups = append(groups, docGroup{Name: tag, Calls: calls})
	}
	sort.Slice(groups, func(i, j int) bool { return groups[i].Name < groups[j].Name })
	return groups
}

func docFields(o *huma.OpenAPI, op *huma.Operation) []docField {
	var fields []docField
	for _, p := range op.Parameters {
		fields = append(fields, docField{Name: p.Name, In: p.In, Type: docType(p.Schema), Doc: p.Description, Required: p.Required})
	}
	if op.RequestBody == nil {
		return fields
	}
	for _, m := range op.RequestBody.Content {
		s := m.Schema
		if s.Ref != "" {
			s = o.Components.Schemas.SchemaFromRef(s.Ref)
		}
		required := map[string]bool{}
		for _, name := range s.Required {
			required[name] = true
		}
		names := make([]string, 0, len(s.Properties))
		for name := range s.Properties {
			names = append(names, name)
		}
		sort.Strings(names)
		for _, name := range names {
			fields = append(fields, docField{Name: name, In: "body", Type: docType(s.Properties[name]), Doc: s.Properties[name].Description, Required: required[name]})
		}
	}
	return fields
}

func docType(s *huma.Schema) string {
	switch {
	case s.Ref != "":
		return "object"
	case s.Type == "array" && s.Items != nil && s.Items.Type != "":
		return "list of " + s.Items.Type
	}
	return s.Type
}
