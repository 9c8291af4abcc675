package update

// mend points current back at the active release when something that is not the
// machine has been at the link: a script, or a person. The journal knows better,
// unless a command is at work between the two or the device is inconsistent.
func (m *Machine) mend() error {
	m.mu.Lock()
	book := m.ledger.book
	m.mu.Unlock()
	want := book.Active.Release
	if want == "" || book.Broken != "" || book.Op != nil && !book.Op.State.row().cancel {
		return nil
	}
	now, err := m.parts.Releases.Current()
	if err == nil && now == want {
		return nil
	}
	m.parts.Log.Warn().AnErr("found", err).Str("current", now).Str("release", want).Msg("current did not name the active release and is set right")
	return m.parts.Releases.Switch(want)
}
