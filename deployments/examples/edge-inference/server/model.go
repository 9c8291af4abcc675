package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
)

// maxModelBytes bounds a model file; the examples take 1 to 3 KB.
const maxModelBytes = 1 << 20

// Model is a classifier of one row of sensor readings: standardised inputs,
// then layers, tanh between them and a sigmoid at the end.
type Model struct {
	Name     string    `json:"name"`
	Labels   [2]string `json:"labels"` // below and from the threshold on
	Features []struct {
		Name string  `json:"name"`
		Mean float64 `json:"mean"`
		Std  float64 `json:"std"`
	} `json:"features"`
	Layers []struct {
		Weights [][]float64 `json:"weights"` // one row for each output
		Bias    []float64   `json:"bias"`
	} `json:"layers"`
	// Reference is a sample whose answer is known: a model that gets it wrong
	// is not fit to serve, however well its file reads.
	Reference struct {
		Features []float64 `json:"features"`
		Label    string    `json:"label"`
		MinScore float64   `json:"min_score"`
	} `json:"reference"`
}

// LoadModel reads a model file and checks that its sizes fit together.
func LoadModel(path string) (*Model, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxModelBytes+1))
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	if err != nil {
		return nil, fmt.Errorf("read model: %w", err)
	}
	if len(data) > maxModelBytes {
		return nil, fmt.Errorf("model %s is larger than %d bytes", path, maxModelBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var m Model
	if err := dec.Decode(&m); err != nil {
		return nil, fmt.Errorf("read model %s: %w", path, err)
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("model %s: %w", path, err)
	}
	return &m, nil
}

func (m *Model) check() error {
	if m.Labels[0] == "" || m.Labels[1] == "" || m.Labels[0] == m.Labels[1] {
		return fmt.Errorf("labels are %q, want two", m.Labels)
	}
	if len(m.Features) == 0 || len(m.Layers) == 0 {
		return fmt.Errorf("it has %d features and %d layers, want at least one of each", len(m.Features), len(m.Layers))
	}
	for _, f := range m.Features {
		if f.Std <= 0 {
			return fmt.Errorf("feature %s has the standard deviation %v", f.Name, f.Std)
		}
	}
	width := len(m.Features)
	for i, l := range m.Layers {
		if len(l.Weights) == 0 || len(l.Weights) != len(l.Bias) {
			return fmt.Errorf("layer %d has %d rows of weights and %d biases", i, len(l.Weights), len(l.Bias))
		}
		for _, row := range l.Weights {
			if len(row) != width {
				return fmt.Errorf("layer %d takes %d inputs, it gets %d", i, len(row), width)
			}
		}
		width = len(l.Bias)
	}
	if width != 1 {
		return fmt.Errorf("the last layer has %d outputs, want 1", width)
	}
	if len(m.Reference.Features) != len(m.Features) {
		return fmt.Errorf("the reference sample has %d features, want %d", len(m.Reference.Features), len(m.Features))
	}
	return nil
}

// Score returns the probability of the second label.
func (m *Model) Score(features []float64) (float64, error) {
	if len(features) != len(m.Features) {
		return 0, fmt.Errorf("%d features, want %d", len(features), len(m.Features))
	}
	in := make([]float64, len(features))
	for i, x := range features {
		in[i] = (x - m.Features[i].Mean) / m.Features[i].Std
	}
	for n, l := range m.Layers {
		out := make([]float64, len(l.Bias))
		for i, row := range l.Weights {
			out[i] = l.Bias[i]
			for j, w := range row {
				out[i] += w * in[j]
			}
			if n < len(m.Layers)-1 {
				out[i] = math.Tanh(out[i])
			}
		}
		in = out
	}
	score := 1 / (1 + math.Exp(-in[0]))
	if math.IsNaN(score) {
		return 0, fmt.Errorf("the features are out of range")
	}
	return score, nil
}

// SelfTest scores the reference sample.
func (m *Model) SelfTest() error {
	score, err := m.Score(m.Reference.Features)
	if err != nil {
		return err
	}
	if m.Reference.Label == m.Labels[0] {
		score = 1 - score
	}
	if score < m.Reference.MinScore {
		return fmt.Errorf("self-test failed: model %s scored %.3f for %q on the reference sample, want >= %.2f",
			m.Name, score, m.Reference.Label, m.Reference.MinScore)
	}
	return nil
}
