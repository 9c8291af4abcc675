package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kernexhq/kernex/pkg/bundle"
	"github.com/kernexhq/kernex/pkg/secretfile"
)

// keyPassword is the variable with which programs open a release key.
const keyPassword = "KERNEX_KEY_PASSWORD"

// password takes the environment's, else asks on the terminal.
func (a *app) password(prompt string, twice bool) (string, error) {
	if p := a.env(keyPassword); p != "" {
		return p, nil
	}
	tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
	if err != nil {
		return "", usagef("no terminal to ask for the key's password on; set %s", keyPassword)
	}
	defer tty.Close()
	p, err := askHidden(tty, prompt)
	if err == nil && twice {
		var again string
		if again, err = askHidden(tty, "the same again"); err == nil && again != p {
			return "", errors.New("the two passwords differ")
		}
	}
	return p, err
}

// askHidden reads one line without showing it.
func askHidden(tty *os.File, prompt string) (line string, err error) {
	fd := int(tty.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return "", fmt.Errorf("ask for the password: %w", err)
	}
	hidden := *old
	hidden.Lflag &^= unix.ECHO
	if err := unix.IoctlSetTermios(fd, unix.TCSETSF, &hidden); err != nil {
		return "", fmt.Errorf("ask for the password: %w", err)
	}
	defer func() {
		err = errors.Join(err, unix.IoctlSetTermios(fd, unix.TCSETS, old))
		fmt.Fprintln(tty)
	}()
	fmt.Fprintf(tty, "%s: ", prompt)
	line, err = bufio.NewReader(tty).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("read the password: %w", err)
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// signingKey opens a secret key file, which nobody else may read.
func (a *app) signingKey(file string) (bundle.SigningKey, error) {
	text, err := secretfile.Read(file)
	if err != nil {
		return bundle.SigningKey{}, err
	}
	password := ""
	if bundle.Encrypted([]byte(text)) {
		if password, err = a.password("password of "+file, false); err != nil {
			return bundle.SigningKey{}, err
		}
	}
	key, err := bundle.ParseSigningKey([]byte(text), password)
	if err != nil {
		return bundle.SigningKey{}, fmt.Errorf("%s: %w", file, err)
	}
	return key, nil
}

// releaseKey reads a public key: a .pub file, or its one line itself. file is
// its exact content.
func releaseKey(arg string) (key bundle.ReleaseKey, file string, err error) {
	if key, err = bundle.ParseReleaseKey(arg); err == nil {
		return key, arg, nil
	}
	b, err := os.ReadFile(arg)
	if err != nil {
		return key, "", fmt.Errorf("read release key: %w", err)
	}
	key, err = bundle.ParseReleaseKey(string(b))
	return key, string(b), err
}

type bundleKeygenCmd struct {
	File       string `short:"f" default:"release" placeholder:"PREFIX" help:"Writes PREFIX.key, the secret, and PREFIX.pub."`
	NoPassword bool   `help:"Leave the secret key unencrypted; whoever reads the file can then sign."`
}

func (c *bundleKeygenCmd) Run(a *app) error {
	secret, public := c.File+".key", c.File+".pub"
	for _, f := range []string{secret, public} {
		if _, err := os.Lstat(f); err == nil {
			return fmt.Errorf("%s is already there; a key that is lost cannot be made again, so move it away yourself", f)
		}
	}
	password := ""
	if !c.NoPassword {
		var err error
		if password, err = a.password("password for the new key", true); err != nil {
			return err
		}
		if password == "" {
			return usagef("the password is empty; --no-password leaves the key unencrypted")
		}
	}
	key, err := bundle.NewSigningKey()
	if err != nil {
		return err
	}
	text, err := key.File(password)
	if err != nil {
		return fmt.Errorf("write release key: %w", err)
	}
	if err := secretfile.Write(secret, string(text)); err != nil {
		return err
	}
	if err := os.WriteFile(public, key.Public().File(), 0o644); err != nil { //nolint:gosec // it is public
		return fmt.Errorf("write release key: %w", err)
	}
	v := struct {
		ID        string `json:"id"`
		PublicKey string `json:"public_key"`
		Secret    string `json:"secret_key_file"`
		Public    string `json:"public_key_file"`
	}{key.Public().ID(), key.Public().String(), secret, public}
	return a.say(v, "release key %s: keep %s off every server, and a copy of it safe; next: kernex release-key add %s", v.ID, secret, public)
}
