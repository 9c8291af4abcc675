package deployments_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"
)

func TestAlertsNameMetricsThatTheProgramsHave(t *testing.T) {
	t.Parallel()
	known := metricNames(t)
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert       string
				Expr        string
				Labels      map[string]string
				Annotations map[string]string
			}
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, "deployments/prometheus/alerts.yaml")), &rules); err != nil {
		t.Fatal(err)
	}
	jobs := jobNames(t)
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			for _, m := range regexp.MustCompile(`kernex_[a-z_]+`).FindAllString(r.Expr, -1) {
				if !known[strings.TrimSuffix(m, "_bucket")] {
					t.Errorf("%s asks for %s, which no program has", r.Alert, m)
				}
			}
			for _, m := range regexp.MustCompile(`job="([^"]+)"`).FindAllStringSubmatch(r.Expr, -1) {
				if !slices.Contains(jobs, m[1]) {
					t.Errorf("%s asks for job %s, which is not scraped", r.Alert, m[1])
				}
			}
			if !slices.Contains([]string{"page", "ticket"}, r.Labels["severity"]) || r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("%s lacks severity, summary or description", r.Alert)
			}
		}
	}
}

// jobNames are those of prometheus.yaml; its targets must listen in compose.yaml.
func jobNames(t *testing.T) []string {
	t.Helper()
	var cfg struct {
		ScrapeConfigs []struct {
			JobName       string `yaml:"job_name"`
			StaticConfigs []struct {
				Targets []string
			} `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	if err := yaml.Unmarshal([]byte(read(t, "deployments/prometheus/prometheus.yaml")), &cfg); err != nil {
		t.Fatal(err)
	}
	p := compose(t)
	var jobs []string
	for _, c := range cfg.ScrapeConfigs {
		jobs = append(jobs, c.JobName)
		for _, s := range c.StaticConfigs {
			for _, target := range s.Targets {
				host, port, _ := strings.Cut(target, ":")
				if got := value(p.Services[host], "KERNEX_HTTP"); got != "0.0.0.0:"+port {
					t.Errorf("%s scrapes %s, which serves %q", c.JobName, target, got)
				}
			}
		}
	}
	return jobs
}

// metricNames reads the names from the sources: a subsystem in a file, with each
// quoted word of that file that may be a name, and full names.
func metricNames(t *testing.T) map[string]bool {
	t.Helper()
	word, subsystem := regexp.MustCompile(`"([a-z][a-z_]+)"`), regexp.MustCompile(`Subsystem: "([a-z]+)"`)
	names := map[string]bool{}
	for _, dir := range []string{"broker", "orchestrator"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			if err != nil || !strings.Contains(string(b), "prometheus.") {
				return err
			}
			prefixes := []string{""}
			for _, m := range subsystem.FindAllStringSubmatch(string(b), -1) {
				prefixes = append(prefixes, "kernex_"+m[1]+"_")
			}
			for _, m := range word.FindAllStringSubmatch(string(b), -1) {
				for _, p := range prefixes {
					names[p+m[1]] = true
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return names
}
