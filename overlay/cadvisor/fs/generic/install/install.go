// Copyright 2026 The k3s9p Authors. All Rights Reserved.
//
// Licensed under the Apache License, Version 2.0 (the "License");
// you may not use this file except in compliance with the License.
// You may obtain a copy of the License at
//
//     http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS,
// WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and
// limitations under the License.

//go:build linux

// Package install registers the plugins of package generic.
package install

import (
	"k8s.io/klog/v2"

	"github.com/google/cadvisor/fs"
	"github.com/google/cadvisor/fs/generic"
)

func init() {
	for _, plugin := range []fs.FsPlugin{generic.New9PPlugin(), generic.NewFallbackPlugin()} {
		if err := fs.RegisterPlugin(plugin.Name(), plugin); err != nil {
			klog.Fatalf("Failed to register %s fs plugin: %v", plugin.Name(), err)
		}
	}
}
