package main

import (
	"runtime"
	"runtime/debug"
)

type versionCmd struct{}

func (c *versionCmd) Run(a *app) error {
	v := struct {
		Version  string `json:"version"`
		Go       string `json:"go"`
		Platform string `json:"platform"`
	}{"(unknown)", runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		v.Version = info.Main.Version
	}
	return a.say(v, "kernex %s %s %s", v.Version, v.Go, v.Platform)
}
